"""What a whole run will take, from what its parts took in a rehearsal (`Engine.rehearse`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        first: Seconds of the first step with its pictures, and of all that is loaded or set up at its first use.
        step: Seconds of a later step; the mean, as a run is a sum.
        picture: Seconds that pictures add to a step.
        checkpoint: Seconds of writing one.
        checkpoint_mb: Its size on the disk.
        peak_mb: Largest memory, of a GPU or else of this process.
        waiting: Share of a later step spent waiting for reads.
        timed: Later steps that were timed.
    """

    first: float
    step: float
    picture: float
    checkpoint: float
    checkpoint_mb: float
    peak_mb: float
    waiting: float
    timed: int

    def seconds(self, steps: int, pictures: int, checkpoints: int) -> float:
        """The whole run's, as summary.json counts them: from the first step to the last checkpoint."""
        return self.first + (steps - 1) * self.step + (pictures - 1) * self.picture + checkpoints * self.checkpoint
