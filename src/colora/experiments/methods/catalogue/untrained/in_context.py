"""Examples in the prompt of the base model as it is (Brown et al., arXiv:2005.14165): W_k = W0. Nothing is trained.

    in-context:          the training examples of the task in their order, as many as fit, the same for all inputs
    in-context-nearest:  those whose inputs share most words with the input (Jaccard of the sets of lower-cased words,
                         ties by order), the nearest last, next to the input; after Liu et al., arXiv:2101.06804, who
                         choose by embeddings

`context` is the most tokens of prompt and answer together; the model's positions bound it as well. An answer ends with
the blank line after it instead of the end token, see `colora.experiments.methods.in_context`.
"""

from colora.experiments.methods.method import Method

__all__ = ["IN_CONTEXT", "IN_CONTEXT_NEAREST"]

IN_CONTEXT = Method(
    "in-context",
    "examples in the prompt",
    "The base model with the task's training examples in its prompt, without training.",
    "Brown et al., arXiv:2005.14165",
    terms=(),
    prompt_examples="first",
    options={"context": 1024},
)
IN_CONTEXT_NEAREST = Method(
    "in-context-nearest",
    "nearest examples in the prompt",
    "As in-context, with the training examples that share most words with each input.",
    "after Liu et al., arXiv:2101.06804",
    terms=(),
    prompt_examples="nearest",
    options={"context": 1024},
)
