"""Checks of a config.json: the attributes that every family may have, and the refusal of those that are not handled."""

from collections.abc import Mapping, Sequence, Set

from inversionview_jax.errors import InversionViewError

# Attributes of generation and of bookkeeping: they do not change the forward pass.
NO_EFFECT = {
  "_attn_implementation_autoset",
  "_name_or_path",
  "_num_labels",
  "architectures",
  "bad_words_ids",
  "begin_suppress_tokens",
  "bos_token_id",
  "cache_implementation",
  "chunk_size_feed_forward",
  "decoder_start_token_id",
  "diversity_penalty",
  "do_sample",
  "dtype",
  "early_stopping",
  "eos_token_id",
  "exponential_decay_length_penalty",
  "finetuning_task",
  "forced_bos_token_id",
  "forced_eos_token_id",
  "id2label",
  "initializer_range",
  "is_encoder_decoder",
  "label2id",
  "length_penalty",
  "max_length",
  "min_length",
  "model_type",
  "no_repeat_ngram_size",
  "num_beam_groups",
  "num_beams",
  "num_return_sequences",
  "output_attentions",
  "output_hidden_states",
  "output_past",
  "output_scores",
  "pad_token_id",
  "prefix",
  "problem_type",
  "remove_invalid_values",
  "repetition_penalty",
  "return_dict",
  "return_dict_in_generate",
  "sep_token_id",
  "suppress_tokens",
  "task_specific_params",
  "temperature",
  "tokenizer_class",
  "top_k",
  "top_p",
  "torch_dtype",
  "torchscript",
  "transformers.js_config",
  "transformers_version",
  "typical_p",
  "unk_token_id",
  "use_bfloat16",
  "use_cache",
}
# Attribute -> the values under which the model is the one that is built here.
MUST_BE: dict[str, tuple] = {
  "quantization_config": (None,),
  "pruned_heads": ({}, None),
  "add_cross_attention": (False,),
}


def refuse_unhandled(attributes: Mapping, where: str, handled: Set[str], must_be: Mapping[str, tuple]) -> None:
  """Refuses a config.json with an attribute that is not handled.

  Args:
    attributes: of config.json.
    where: its name, for error messages.
    handled: names of the attributes that the family reads, or that have no effect in it; those of `NO_EFFECT` are handled anyway.
    must_be: attribute -> the values that it may have; added to `MUST_BE`.

  Raises:
    InversionViewError: names the first attribute that is not handled, or whose value is not.
  """
  must_be = {**must_be, **MUST_BE}
  for name, value in attributes.items():
    if name in must_be:
      if value not in must_be[name]:
        raise InversionViewError(f"{where}: {name} = {value!r} is not handled, only {must_be[name][0]!r}")
    elif name not in handled and name not in NO_EFFECT:
      raise InversionViewError(
        f"{where}: attribute {name} = {value!r} is not handled; the model might compute something else without it"
      )


def refuse_sizes(attributes: Mapping, where: str, names: Sequence[str]) -> None:
  """Raises `InversionViewError` naming the first of these attributes that is missing or is not a whole number from 1 (layers: 0) on."""
  for name in names:
    if name not in attributes:
      raise InversionViewError(f"{where}: attribute {name} is missing")
    least = 0 if "layer" in name else 1  # a model may have no layers, only embedding and unembedding
    if not isinstance(attributes[name], int) or attributes[name] < least:
      raise InversionViewError(f"{where}: {name} = {attributes[name]!r} is not a whole number from {least} on")
