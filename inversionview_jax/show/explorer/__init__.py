"""The interactive page: `inversionview explore`.

`state` is the view and its form in the address bar; `sources` are the readers and targets, `service` keeps what is drawn from them; `inputs` is
a text with its positions and attention; `panels`, `attention`, `pins` and `circuits` make HTML of them; `pane` is that HTML in a browser, with
its clicks and keys; `controls` are the widgets; `app` is the page that Streamlit runs.
"""
