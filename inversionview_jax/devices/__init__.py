"""Where arrays live and how they are multiplied: `parallel` (mesh, `pmap`, `jit`), `sharding`, `hosts`, `numerics`, `cpu`, `chips`, `program_cost`.

Its modules are imported one by one: some of them, such as `chips`, need no JAX.
"""
