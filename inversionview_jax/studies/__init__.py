"""Whole studies of a model on a task: which heads matter, what they encode, whether patching agrees, and a page of it all."""
