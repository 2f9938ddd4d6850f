"""Attributes of a config.json that do not change the forward pass of a language model."""

_GENERATION = """
assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bad_words_ids begin_suppress_tokens
cache_config cache_implementation compile_config constraints decoder_start_token_id disable_compile diversity_penalty do_sample
dola_layers early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id generation_config guidance_scale is_assistant
length_penalty low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p
no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_logits
output_scores penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits repetition_penalty
return_dict_in_generate sequence_bias stop_strings suppress_tokens target_lookbehind task_specific_params temperature token_healing top_h
top_k top_p typical_p use_cache use_mtp watermarking_config
"""
_TOKENIZER = """
add_bos_token add_eos_token bos_token bos_token_id cls_token_id decoder_start_token eos_token eos_token_id mask_token_id model_max_length
pad_token pad_token_id prefix sep_token_id tokenizer_class unk_token unk_token_id
"""
# Of bookkeeping, and of how a program holds or returns what it computes.
_PROGRAM = """
architectures attn_implementation auto_map bf16 chunk_size_feed_forward custom_pipelines dtype experts_implementation finetuning_task fp16
fp32 is_llama_config keys_to_ignore_at_inference license max_seq_len max_sequence_length model_name model_name_or_path model_type
name_or_path output_attentions output_hidden_states output_past output_router_logits pretraining_pp pretraining_tp return_dict seq_len
seq_length tie_last_hidden_states torch_dtype torchscript transformers.js_config transformers_version transformers_weights use_bfloat16
use_flash_attention use_flash_attention_2 use_flash_attn use_liger_kernel use_return_dict use_sdpa xla_device
"""
_TRAINING = """
activation_dropout attention_dropout attention_probs_dropout_prob attn_dropout attn_pdrop dropout embd_pdrop embed_dropout
embedding_dropout gradient_checkpointing hidden_dropout hidden_dropout_prob init_device init_std initializer_factor initializer_range
label_smoothing layerdrop n_special neftune_noise_alpha predict_special_tokens resid_dropout resid_pdrop router_aux_loss_coef
router_jitter_noise router_z_loss_coef use_gradient_checkpointing
"""
# Of heads of classifiers, and of encoders beside a decoder.
_OTHER_HEADS = """
classifier_activation classifier_bias classifier_dropout cross_attention_hidden_size id2label is_decoder is_encoder_decoder label2id
num_labels problem_type sentence_pooling summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
tie_encoder_decoder
"""
NO_EFFECT = frozenset(" ".join((_GENERATION, _TOKENIZER, _PROGRAM, _TRAINING, _OTHER_HEADS)).split())


def has_no_effect(name: str) -> bool:
  """Whether an attribute is one of these, or of a program's own state: names that begin with an underscore, and unsloth's."""
  return name in NO_EFFECT or name.startswith(("_", "unsloth_"))
