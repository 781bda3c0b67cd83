"""A language model as the judge: scores of 1 to 10, and pairwise choices in both orders.

Any endpoint that speaks OpenAI's chat completions will do. subjects: what is judged; questions: what is asked and what
it will cost; endpoint and cache: how it is asked, once; answers: what an answer says; tally: what all of them say.
"""
