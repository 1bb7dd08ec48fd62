"""What a run does beside its steps: validation loss and repetition, the best model, samples, figures at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from corpus.tokenizer import load_tokenizer
from evaluation.rows import measured_rows
from model import GenerationError
from training.checkpointing.run_state import RunState
from training.checkpointing.saver import SAVE_SECONDS, Saver
from training.context import RunContext
from training.engine.protocol import Engine
from training.evaluation.generation import RepetitionEvaluator, SampleWriter
from training.evaluation.language import FEWEST_STEPS, final_figures
from training.evaluation.validation import Evaluation, enough_untrained, evaluate, intervals
from training.monitoring.recorder import Recorder
from training.session import Session


class Evaluator:
    """Does what is due at a step, and notes it in the state of the run. Every rank has one; calls are collective."""

    def __init__(self, context: RunContext, engine: Engine, session: Session, recorder: Recorder, saver: Saver) -> None:
        self.context, self.engine, self.session, self.recorder, self.saver = context, engine, session, recorder, saver
        options, config, corpus = context.options, context.config, context.corpus
        self.seq_len, seed = options.max_seq_len, options.seed
        self.val, self.tokenizer = corpus.split("val"), load_tokenizer(corpus.tokenizer_path)
        self.rows, self.row_length = measured_rows(self.val, options.eval_tokens, self.seq_len)
        self.first_rows = self.rows if options.init_from else enough_untrained(self.rows, self.row_length)
        self.every = intervals(options, context.resolved.total_steps)
        self.repetition = RepetitionEvaluator(self.val, config, seq_len=self.seq_len, seed=seed, world=context.world)
        self.samples = SampleWriter(self.val, self.tokenizer, config, seq_len=self.seq_len, seed=seed)
        self.last: Evaluation | None = None

    def due(self, state: RunState) -> dict[str, Callable[[RunState], bool]]:
        """Return what is to be done at this step and has not been done yet; False from it if it was given up."""
        step, last = state.step, state.step == self.context.resolved.total_steps
        due: dict[str, Callable[[RunState], bool]] = {}
        if self.rows and (step % self.every.evaluation == 0 or last):
            due["evaluation"] = self._evaluate
        if self.samples.prompts and (step % self.every.sample == 0 or last):
            due["sample"] = self._sample
        return {name: work for name, work in due.items() if state.done.get(name) != step}

    def do_due(self, state: RunState) -> None:
        """Do what is due, as long as nobody asks the run to stop."""
        for name, work in self.due(state).items():
            started = time.perf_counter()
            if self._asked_to_stop() or not work(state):
                return
            state.done[name] = state.step
            self.saver.saved_step = None  # of a run that continues: it would have to be done again
            if name == "sample":
                self.session.took(time.perf_counter() - started)

    def _asked_to_stop(self) -> bool:
        return self.session.asked_to_stop(self.saver.seconds)

    def _evaluate(self, state: RunState) -> bool:
        """Measure validation loss and repetition, and keep the best model so far.

        False if it was given up for a request to stop.
        """
        self.session.now("evaluating")
        result = evaluate(
            self.engine,
            self.val,
            self.rows if state.step else self.first_rows,
            seq_len=self.row_length,
            micro_batch=self.context.resolved.micro_batch,
            world=self.context.world,
            bytes_per_token=self.context.bytes_per_token("val"),
            give_up=self._asked_to_stop,
        )
        if result is None:
            return False
        self.last = result
        started = time.perf_counter()
        before = state.best_loss, state.best_step
        best = state.update_best(result.loss)
        baselines = self.context.corpus.manifest.ngram_baselines
        self.recorder.progress.evaluated(result.loss, result.bits_per_byte, baselines, best)
        self.session.now("measuring repetition")
        figures, problem = self.repetition.figures(self.engine)
        self.recorder.evaluated(state, result, figures, len(self.repetition.held_out.prompts), problem)
        if best and not self.export():
            state.best_loss, state.best_step = before  # not kept, so not the one for later ones to beat
        self.session.took(time.perf_counter() - started)
        return True

    def _sample(self, state: RunState) -> bool:
        """Write continuations of the fixed prompts."""
        self.session.now("writing samples")
        try:
            self.recorder.sampled(state, self.samples.write(self.engine))
        except GenerationError as error:  # not finite: no reason to lose the run's last checkpoint
            self.context.console.say(f"  no sample: {error}")
        return True

    def export(self) -> bool:
        """Write model/; return whether it could be written."""
        self.session.now("exporting", SAVE_SECONDS)
        return self.saver.export(self.context.config, self.context.corpus.tokenizer_path)

    def measure_language(self, state: RunState) -> None:
        """Measure minimal pairs and the use of context of a run that has ended, unless it was too short."""
        if not state.finished or state.step < FEWEST_STEPS or not self.rows:
            return
        self.session.now("measuring minimal pairs", SAVE_SECONDS)
        figures, problem = final_figures(self.engine, self.val, self.tokenizer, self.context.config, self.seq_len)
        self.recorder.measured(state, figures, problem)
