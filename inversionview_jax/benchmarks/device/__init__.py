"""Whether this package gives the right numbers on the devices of this machine, and how fast: `inversionview bench --device`.

`check` runs the parts of `parts`, each in a process of its own with a time limit, and writes `device.json` and `device.md` after every one of them. Parity is
judged against `golden.safetensors`, made on a CPU by `golden`.
"""
