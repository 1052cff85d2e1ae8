"""Good answers are rare: the additions, by a pupil who can add and hardly ever does. Most groups earn no reward."""

from examples.tasks import sums
from examples.tasks.task import Recipe, Task, exact
from workers.demo import make_tokenizer

TASK = Task(
    name="rare",
    about="two-digit additions, right in some 5 %",
    write=sums.write,
    tokenizer=make_tokenizer,
    grader=exact(),
    max_completion_tokens=sums.MAX_ANSWER,
    recipe=Recipe(right_at_first=0.62, right_later=0.05, diligent=0.5),
)
