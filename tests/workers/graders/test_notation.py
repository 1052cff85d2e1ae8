"""Mathematical answers as models and people write them: reference, answer, and whether they are the same."""

import time

import pytest

from service.graders.schemas import parse_grader
from workers.graders import Grader, GraderSample, build
from workers.sandbox.notation import answer_in, rewritten

TABLE = r"""
13	\boxed{12}? No, 12 is wrong. It is \boxed{13}.	1
13	\boxed{13}? No, 13 is wrong. It is \boxed{12}.	0
46	\boxed{46} or \boxed{47}	0
46	The answer is 46.	1
46	so it is \boxed{46}	1
46	-46	0
46	I do not know	0
46		0
1000	1e3	1
1000	1E3	1
1000	1.0e3	1
1000	1e+3	1
0.001	1e-3	1
1000	$1e3$	1
1000	\boxed{1e3}	1
1e3	1000	1
1e3	\boxed{1000}	1
7/2	3 1/2	1
7/2	\boxed{3 1/2}	1
7/2	$3\frac{1}{2}$	1
7/2	$3 \frac12$	1
7/2	\boxed{3\tfrac{1}{2}}	1
3 1/2	7/2	1
3 1/2	3.5	1
3\frac{1}{2}	\boxed{\frac{7}{2}}	1
-7/2	-3 1/2	1
3/2	3 1/2	0
1/2	3 1/2	0
31/2	3 1/2	0
1500	1.5 \times 10^3	1
1500	$1.5 \times 10^3$	1
1500	\boxed{1.5 \times 10^{3}}	1
1500	1.5 × 10^3	1
1500	1.5 * 10^3	1
1500	$1.5 \cdot 10^3$	1
0.0015	1.5 \times 10^{-3}	1
1.5 \times 10^3	1500	1
1.5 \times 10^3	1.5e3	1
12345	12,345	1
12345	\boxed{12,345}	1
12345	\boxed{12{,}345}	1
12345	\boxed{12\,345}	1
12345	12 345	1
12345	\boxed{12 345}	1
12345	1,234,5	0
1234567	The answer is 1,234,567.	1
1234567	1 234 567	1
12,345	12345	1
12 345	12345	1
12345.67	12,345.67	1
50\%	\boxed{50\%}	1
50%	50%	1
50	50%	1
0.5	50%	1
50%	0.5	1
50\%	\boxed{\frac{1}{2}}	1
5	\boxed{5 \text{ cm}}	1
5	\boxed{5\text{cm}}	1
5	5 cm	1
5	\boxed{5\,\mathrm{m/s}}	1
5 \text{ cm}	\boxed{5}	1
5	\boxed{\$5}	1
5	$\$5$	1
5	The cost is $5.	1
90	\boxed{90^\circ}	1
90	90°	1
90^\circ	\boxed{90}	1
\frac{1}{2}	\boxed{0.5}	1
1/2	$\frac{2}{4}$	1
\frac{1}{2}	\boxed{\dfrac{1}{2}}	1
\frac{1}{2}	\boxed{\frac12}	1
\frac{1}{2}	1	0
\dfrac{3}{4}	3/4	1
\frac{3}{4}	\boxed{\frac{3}{4}}	1
-\frac{3}{4}	\boxed{-\frac{3}{4}}	1
-\frac{3}{4}	\boxed{\frac{-3}{4}}	1
x^2+1	$1+x^2$	1
x^2+1	\boxed{1+x^2}	1
(x+1)^2	\boxed{x^2+2x+1}	1
(x+1)^2	\boxed{x^2+1}	0
\{1,2\}	$\{2,1\}$	1
\{1,2\}	\boxed{\{1, 2\}}	1
\{1,2\}	\boxed{\{1, 3\}}	0
\{1,2\}	\boxed{1, 2}	1
(1,2)	\boxed{(1,2)}	1
(1,2)	\boxed{(2,1)}	0
(1,2)	\boxed{[1,2]}	0
[1,2)	\boxed{[1,2)}	1
[0,\infty)	\boxed{[0,\infty)}	1
(-\infty,3]	\boxed{(-\infty, 3]}	1
(-\infty,3]	\boxed{(-\infty, 3)}	0
(-\infty,1)\cup(2,\infty)	\boxed{(-\infty,1)\cup(2,\infty)}	1
\sqrt{2}	\boxed{\sqrt{2}}	1
\sqrt{2}	\boxed{\sqrt2}	1
\sqrt{8}	\boxed{2\sqrt{2}}	1
2\pi	\boxed{2\pi}	1
2\pi	2π	1
x=5	\boxed{5}	1
5	\boxed{x=5}	1
5	x = 5	1
5	**5**	1
5	**Answer:** 5	1
5	The final answer is $\boxed{5}$. I hope it is correct.	1
5	\[ \boxed{5} \]	1
5	\(5\)	1
5	$$5$$	1
5	\boxed{\textbf{5}}	1
5	\boxed{\text{5}}	1
\text{A}	\boxed{A}	1
A	\boxed{A}	1
A	\boxed{B}	0
A	\boxed{\text{A}}	1
A	\boxed{\text{(A)}}	1
A	\boxed{(A)}	1
12	12.0	1
12	12.00	1
12	twelve	0
12	\fbox{12}	1
12	\boxed 12	1
5	2+3=5	1
5	So \boxed{2+3=5}	1
5	We get 5 after 3 steps.	0
\frac{\sqrt{3}}{2}	\boxed{\frac{\sqrt{3}}{2}}	1
\frac{1}{1+\frac{1}{2}}	\boxed{\frac{2}{3}}	1
10	\boxed{\boxed{10}}	1
1/3	0.333	0
1/3	0.333333333	1
-5	−5	1
-5	\boxed{-5}	1
5	+5	1
100	100.	1
0.5	.5	1
1/2	½	1
1000000	1{,}000{,}000	1
1000000	10^6	1
1000000	$10^6$	1
1.23e-4	\boxed{0.000123}	1
0.000123	\boxed{1.23 \times 10^{-4}}	1
5	\boxed{5}.  So 5 it is, as 2 and 3 are primes.	1
4	The values 1, 2, 3 give \boxed{4}	1
True	\boxed{True}	1
3+4i	\boxed{3+4i}	1
3+4i	\boxed{4i+3}	1
\begin{pmatrix}1&2\\3&4\end{pmatrix}	\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}	1
\begin{pmatrix}1&2\\3&4\end{pmatrix}	\boxed{\begin{pmatrix}1&2\\3&5\end{pmatrix}}	0
13	$\boxed{12}$? No. So $\boxed{13}$	1
13	\fbox{12}, wait: \fbox{13}	1
13	\boxed{13} \boxed{	1
7	x=\boxed{3}, y=\boxed{4}	0
\{3,4\}	\boxed{3} and \boxed{4}	1
\{3,4\}	$\boxed{3}$ or $\boxed{4}$	1
\{3,4\}	$x=\boxed{3}$, $y=\boxed{4}$	1
1.6 \times 10^{-19}	1.6e-19	1
1.6 \times 10^{-19}	\boxed{2 \times 10^{-19}}	0
1.6 \times 10^{-19}	0	0
6.022 \times 10^{23}	\boxed{6.022 \times 10^{23}}	1
6.022e23	6.022 × 10²³	1
3.5	3½	1
2	\boxed{\frac{6}{3}}	1
-3.5	\boxed{-3\frac{1}{2}}	1
5/3	1\ \frac{2}{3}	1
1000	10³	1
2020	In 2020	1
3	from 1 to 3	1
0.25	\boxed{1/4}	1
1/4	25\%	1
24	4!	0
\frac{x+2}{7}	\boxed{\frac{x+2}{7}}	1
\frac{x+2}{7}	\boxed{\frac{x}{7}+\frac{2}{7}}	1
11\sqrt{2}	\boxed{11\sqrt2}	1
6 - 5i	$6-5i$	1
\frac{14}{3}	\boxed{4 \frac{2}{3}}	1
1 \pm \sqrt{19}	\boxed{1 \pm \sqrt{19}}	1
(3, \frac{\pi}{2})	\boxed{\left( 3, \frac{\pi}{2} \right)}	1
\text{Evelyn}	\boxed{\text{Evelyn}}	1
\text{Evelyn}	\boxed{\text{Carla}}	0
15\mbox{ cm}^2	\boxed{15}	1
10\%	10	1
\$32,000	\boxed{32000}	1
70,000	\boxed{\$70,000}	1
3,4,5	\boxed{3, 4, 5}	1
3,4,5	\boxed{3, 4, 6}	0
(1,12,345)	\boxed{(1, 12, 345)}	1
[-2,7]	x \in [-2,7]	1
[-2,7]	$x \in [-2,7]$	1
2 < x < 3	\boxed{2<x<3}	1
x \geq 5	\boxed{x \ge 5}	1
y=2x+3	\boxed{y=2x+3}	1
2x+3	\boxed{y=2x+3}	1
\frac{3\sqrt{3}}{4}	$\dfrac{3\sqrt{3}}{4}$	1
120^\circ	\boxed{120}	1
17	\boxed{17_{10}}	1
2516_8	\boxed{2516_8}	1
0	\boxed{0}	1
\infty	\boxed{\infty}	1
\emptyset	\boxed{\emptyset}	1
5	\boxed{5}  Wait, let me check: 2+2=4. No, \boxed{4} is right.	0
"""
ROWS = [line.split("\t") for line in TABLE.strip("\n").split("\n")]


@pytest.fixture(scope="module")
def grader() -> Grader:
    return build(parse_grader({"type": "math_verify", "reference": "{{item.answer}}"}, "grader"))


@pytest.mark.parametrize(("reference", "answer", "same"), ROWS)
def test_verdict(grader: Grader, reference: str, answer: str, same: str) -> None:
    (grade,) = grader.grade([GraderSample({"answer": reference}, answer)])
    assert (grade.reward, grade.detail) == (float(same), None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5e3 and 2E-3", "1500 and 0.002"),
        ("1e9999 and 1e999", "1e9999 and 1e999"),
        ("0x1e3, a1e3, 2.1.5e3", "0x1e3, a1e3, 2.1.5e3"),
        ("It is 1e3. Or 2 x 10^4. Or 12 345.6.", "It is 1000. Or 20000. Or 12345.6."),
        ("3 1/2. and 3 4/2", "7/2. and 3 4/2"),
        ("\\frac{1}{2} 3/4", "\\frac{1}{2} 3/4"),
        ("12 345 678", "12345678"),
        ("1234 567", "1234 567"),
        ("1.234 567", "1.234 567"),
        ("(+5, 2+3)", "(5, 2+3)"),
    ],
)
def test_rewritten(text: str, expected: str) -> None:
    assert rewritten(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}.", "\\boxed{\\frac{1}{2}}"),
        ("\\boxed{1}, \\boxed{2} and \\boxed{3}", "\\boxed{1} and \\boxed{2} and \\boxed{3}"),
        ("\\boxed{\\boxed{1}}", "\\boxed{\\boxed{1}}"),
        ("\\boxed{1} \\boxed{2", "\\boxed{1}"),
        ("\\boxed{\\{1, 2\\}}", "\\boxed{\\{1, 2\\}}"),
        ("so it is 3", "so it is 3"),
    ],
)
def test_the_box_that_counts(text: str, expected: str) -> None:
    assert answer_in(text) == expected


@pytest.mark.parametrize(
    "part", ["\\boxed{", "1", "1 ", "1 1/2 ", "123 456 ", "1e", "+ ", "( ", "{", "\\frac", "a^", "1,"]
)
def test_a_hostile_text_takes_little_time(part: str) -> None:
    before = time.process_time()
    rewritten(answer_in(part * (100_000 // len(part))))
    assert time.process_time() - before < 10
