"""A scoreboard with known answers: programs compiled by Tracr, which say what each of their parts writes and which parts read it."""

from inversionview_jax.benchmarks.scoreboard.board import READERS, Answer, ProgramScore, Score, Scoreboard
from inversionview_jax.benchmarks.scoreboard.scoring import METHODS, scoreboard

__all__ = ["METHODS", "READERS", "Answer", "ProgramScore", "Score", "Scoreboard", "scoreboard"]
