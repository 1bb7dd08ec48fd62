"""The training loop: step, log, save, stop; and back to a checkpoint when numbers go wrong."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from corpus.shards import MaskedStream
from training import data_sampler, rollback
from training.checkpointing import checkpoint
from training.checkpointing.run_state import RunState
from training.checkpointing.saver import SAVE_SECONDS, Saver
from training.checkpointing.write_failures import NotFinite
from training.context import RunContext
from training.data_sampler import SampleStream
from training.engine.internals import loss_scale
from training.engine.protocol import Engine
from training.evaluation.evaluator import Evaluator
from training.monitoring.recorder import Recorder
from training.planning.disk_space import checkpoint_bytes
from training.processes.process_group import any_rank_of_each, broadcast_from_rank0
from training.rollback import Diverged, NonFiniteMonitor
from training.session import Session


class Trainer:
    """One run from its start, or from a checkpoint, to its end; every rank has one and they move together."""

    def __init__(self, context: RunContext, engine: Engine, state: RunState) -> None:
        self.context, self.engine, self.state = context, engine, state
        self.options, self.world, self.console = context.options, context.world, context.console
        corpus, config, resolved = context.corpus, context.config, context.resolved
        seq_len = self.options.max_seq_len
        self.train = corpus.split("train")
        self.total_steps = resolved.total_steps
        self.order = SampleStream(self.train.num_rows(seq_len), self.options.seed, corpus.source_rows(seq_len))
        self.nonfinite = NonFiniteMonitor(engine)
        self.recorder = Recorder(engine, state, context)
        self.saver = Saver(
            engine,
            context.output,
            keep_last=self.options.keep_last,
            expected_bytes=checkpoint_bytes(config, resolved),
            say=self.console.say,
        )
        self.lr = 0.0  # that the latest step was taken with
        self.session = Session(context.stop, context.watchdog, engine.device, self.recorder.progress.doing, state)
        self.evaluator = Evaluator(context, engine, self.session, self.recorder, self.saver)

    def resume(self, found: Path) -> None:
        """Put the engine, and what this rank counted, where checkpoint `found` left them; collective."""
        self.recorder.restore(self.saver.load(found, self.state))

    def fit(self) -> str:
        """Train to the end or until asked to stop; return the reason, for people and for summary.json.

        Raises Diverged, with the last good checkpoint in place, when the numbers went wrong.
        """
        self.session.begin(self.state)
        starting = self.state.step == 0
        self.evaluator.do_due(self.state)  # where training starts from, or what an interruption kept from being done
        if starting and self.options.on_divergence == "rollback":
            self._save()
        self.state.finished = False
        while True:
            reason, problem = self._reason_to_stop(), None
            try:
                if reason or self.state.step == self.total_steps:
                    self._finish(reason)
                    break
                problem = self._step()
                if not problem:
                    self._after_step()
            except NotFinite as error:  # the step was counted, but its weights are not fit to be saved
                self.state.step -= 1
                problem = str(error)
            if problem:
                self._diverged(problem)
        if not self.kept:
            return f"NOT SAVED at the end ({reason or 'finished'})"
        return reason or "finished"

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self) -> str | None:
        """Take one optimizer step, all its micro-batches; return what is wrong with its numbers, if anything."""
        started = time.perf_counter()
        # Every step has its own random numbers, so that a continued run draws what an uninterrupted one would
        torch.manual_seed(hash((self.options.seed, self.state.step, self.world.rank)))
        self.lr, scale = float(self.engine.optimizer.param_groups[0]["lr"]), loss_scale(self.engine)
        micro_batches, seq_len = self._micro_batches(self.world.rank), self.options.max_seq_len
        divisor = None
        if isinstance(self.train, MaskedStream):
            divisor = data_sampler.divisor(self.train, self._all_micro_batches(), seq_len)
        flags = torch.zeros(2, device=self.engine.device)  # a loss that is not finite; a request to stop
        for micro_step, rows in enumerate(micro_batches, 1):
            self.session.before_micro_batch()
            ids, targets = data_sampler.tensors(self.train, rows, seq_len, self.engine.device)
            losses = self.engine(ids, targets, divisor, self.train.targets(rows, seq_len))
            self.engine.backward(losses.total)
            self.recorder.accumulator.add_micro_batch(losses.lm, losses.balance)
            flags[0] += ~losses.lm.detach().isfinite()
            if micro_step == len(micro_batches):
                # read together, so that a GPU is waited for once a step
                flags[1].fill_(self.session.wants_to_stop(self.saver.seconds))
                bad, stopping = any_rank_of_each(flags)
                self.session.agreed(stopping)
                if problem := self.nonfinite.check_loss(not bad):
                    return problem  # before a wrong gradient reaches the weights
            self.engine.step()
        if problem := self.nonfinite.check_step(scale):
            return problem
        seconds = time.perf_counter() - started
        self.state.step += 1
        self.state.seconds += seconds
        self.session.has_stepped = True
        self.session.took(seconds)
        self.recorder.step_done(self.state, seconds, lambda: losses.lm.item())
        return None

    def _micro_batches(self, rank: int) -> list[list[int]]:
        """Return what `rank` trains on in the next step: the corpus rows of each micro-batch."""
        resolved = self.context.resolved
        return self.order.micro_batches(
            self.state.batch_number(self.state.step),
            rank,
            micro_batch=resolved.micro_batch,
            accumulation=resolved.accumulation,
            world_size=self.world.size,
        )

    def _all_micro_batches(self) -> list[list[int]]:
        """Return what all ranks train on in the next step."""
        return [rows for rank in range(self.world.size) for rows in self._micro_batches(rank)]

    def _after_step(self) -> None:
        step, options, last = self.state.step, self.options, self.state.step == self.total_steps
        if step == 1 or step % options.log_interval == 0 or last:
            self.recorder.log_step(self.state, self.lr)
        self.evaluator.do_due(self.state)
        if step % options.save_interval == 0 and not last:
            self._save()

    # --- stopping -----------------------------------------------------------------------------------------------------

    def _reason_to_stop(self) -> str | None:
        """Return why not to go on; collective, and the same on every rank. None if all is done that was to be done."""
        if self.state.step == self.total_steps and not self.evaluator.due(self.state):
            return None
        if why := self.state.early_stopping(self.options.patience):
            return why
        stopping = self.session.stopping  # a step has asked all ranks already
        if stopping is None:
            stopping = self.session.asked_to_stop(self.saver.seconds)
        return self.session.reason() if stopping else None

    # --- what is kept -------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> bool:
        """Return whether all steps so far are in a checkpoint."""
        return self.state.step in (0, self.saver.saved_step)

    def _save(self, *, last: bool = False) -> bool:
        """Write a checkpoint; collective. Return whether it could be written; `last`: the run ends."""
        self.session.now("saving", SAVE_SECONDS)
        self.session.note_times(self.state)
        self.recorder.sync()
        later = f"saving is tried again after {self.options.save_interval:,} steps"
        again = "free some space and start again: the same command goes on from the last of them"
        return self.saver.save(self.state, self.recorder.local(), if_full=again if last else later)

    def _finish(self, reason: str | None) -> None:
        """Write a last checkpoint, and a model even where there is no validation split to choose one by."""
        self.state.finished = not reason
        if not self.state.step:
            return
        if not self.kept and not self._save(last=True):
            self.state.finished = False
        # a run that was begun from a checkpoint of another may never have had a best model of its own
        if self.state.best_loss is None or not broadcast_from_rank0(self.saver.has_model):
            self.evaluator.export()
        self.evaluator.measure_language(self.state)

    def close(self) -> None:
        """Let go of the terminal and the files."""
        self.recorder.close()

    # --- when the numbers go wrong ------------------------------------------------------------------------------------

    def _diverged(self, what: str) -> None:
        """Report, then go back a checkpoint and skip the batch, or end the run by raising Diverged; collective."""
        self.session.now("looking for what went wrong")
        found, before, batch = self.saver.last_good, self.state, self.state.batch_number(self.state.step)
        where = rollback.locate(self.engine, self.train, self._micro_batches(self.world.rank), self.options.max_seq_len)
        rows = [row for part in self._all_micro_batches() for row in part]
        report = rollback.Report(before.step + 1, batch, rows, what, where)
        if self.world.rank == 0:
            report.write(self.context.output)
        self.console.say(f"  DIVERGED: {report}")
        most = self.options.max_rollbacks if self.options.on_divergence == "rollback" else None
        found = rollback.checkpoint_to_go_back_to(found, report, before.rollbacks, most)
        if wrong := broadcast_from_rank0(lambda: checkpoint.damage(found)):
            raise Diverged(f"the checkpoint to go back to is damaged: {wrong}")
        self.state, skipped = rollback.without_batch(checkpoint.read_state(found), before, batch)
        if not self.nonfinite.stepped:
            self.engine.step()  # DeepSpeed lets go of the gradients; the weights are replaced in a moment
        self.nonfinite.bad_losses = 0
        self.resume(found)
        self.recorder.rewind(self.state)
        self.session.begin(self.state)
        self.console.say(f"  back at {found} (rollback {self.state.rollbacks}, at most {most}); skipped: {skipped}")
