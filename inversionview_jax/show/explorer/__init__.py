"""The interactive page: `inversionview explore`.

`state` is the view and its form in the address bar; `service` keeps readers and the preimages they have drawn; `panels` makes HTML of them;
`pane` is that HTML in a browser, with its clicks and keys; `app` is the page that Streamlit runs.
"""
