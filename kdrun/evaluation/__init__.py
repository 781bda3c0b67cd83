"""What a trained student is worth: texts it writes, their overlap with references, its agreement with the teacher.

Parts take plain values (models, token ids, strings, numbers), never a config. Scores are kept per example, so that a
comparison can be paired; the one who reports them takes the mean.
"""
