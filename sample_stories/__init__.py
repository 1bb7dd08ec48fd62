"""不复读's sample corpus: small Chinese stories from a simulated little world, and a checker that knows that world."""

from sample_stories.checker import Verdict, check
from sample_stories.generator import generate_stories, write_sample_corpus

__all__ = ["Verdict", "check", "generate_stories", "write_sample_corpus"]
