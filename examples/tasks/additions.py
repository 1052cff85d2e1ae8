"""The demo's additions of two-digit numbers, of which the base model gets some two in five right when sampled.

The demo's pupil copies either number; this one always the first, so that the greedy answer is wrong.
"""

from examples.tasks import sums
from examples.tasks.task import Recipe, Task, exact
from workers.demo import make_tokenizer

TASK = Task(
    name="additions",
    about="two-digit additions, right in some 40 %",
    write=sums.write,
    tokenizer=make_tokenizer,
    grader=exact(),
    max_completion_tokens=sums.MAX_ANSWER,
    recipe=Recipe(right_at_first=0.62, right_later=0.42, diligent=0.25),
)
