"""Pages and figures: the report, charts, the explorer, and files of the paper's own viewer.

Import the modules themselves: `report` needs no JAX, `charts` needs matplotlib, `explorer` needs Streamlit.
"""
