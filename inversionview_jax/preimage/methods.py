"""The ways to find a preimage: what displays call them, and, of those that are chosen by name, their settings as `Reader.preimage` has them.

"query+monte_carlo" is what "monte_carlo" is called where a language model is the prior and the particles start from the query. "rejection" is not chosen by name: studies share one pool of random inputs.
"""

METHODS = {
  "decoder": "candidates of the decoder",
  "monte_carlo": "Monte Carlo on the target, from the prior",
  "decoder+monte_carlo": "Monte Carlo on the target, from the decoder's candidates",
  "query+monte_carlo": "Monte Carlo on the target, from the query, heated",
  "exact": "the target on every input",
  "rejection": "the target on random inputs",
}
_DECODING, _SAMPLING = ("temperatures", "noise", "num_samples", "mixture"), ("particles", "budget")
SETTINGS = {
  "decoder": _DECODING,
  "monte_carlo": _SAMPLING,
  "decoder+monte_carlo": (*_DECODING, *_SAMPLING),
  "exact": (),
}
# The start of `Preimage.problem` where `Preimage.at` went beyond the epsilon of the run.
PART = "only a part"
