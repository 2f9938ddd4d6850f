"""The picture of a circuit, from the plain data of its circuit.json: an SVG and a self-contained page; needs no JAX.

`contents` reads and checks the file's content, `layout` places nodes and routes edges, `drawing` makes SVG of it, `page` the page around it.
"""

from inversionview_jax.show.circuit_picture.drawing import circuit_svg
from inversionview_jax.show.circuit_picture.page import circuit_page

__all__ = ["circuit_page", "circuit_svg"]
