"""The interactive page: `inversionview explore`.

`state` is what is looked at, and its form in the address bar; `service` holds readers and what they have drawn; `panels` makes HTML of
them; `pane` is that HTML in a browser, with the clicks and keys it answers; `app` is the page that Streamlit runs.
"""
