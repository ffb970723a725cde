"""Keys and values in pages for tests, and attention over them in NumPy, float64."""

import numpy as np

# Sequences without keys, within a page, at its end, of many pages.
LENS, Q_LENS, PAGE, KV_HEADS, D = [0, 1, 16, 17, 90], [1, 1, 0, 3, 8], 16, 2, 64


class Case:
    """Random queries, and keys and values in pages: NaN fills every slot that no sequence uses."""

    def __init__(
        self, lens=LENS, q_lens=Q_LENS, group=3, dtype=np.float32, dv=D, layout="NHD", seed=1, page=PAGE
    ):
        rng = np.random.default_rng(seed)
        heads, blocks = KV_HEADS * group, -(-max(lens) // page)
        pages = len(lens) * blocks + 3
        ids = rng.permutation(pages).astype(np.int32)
        self.tables = np.full((len(lens), blocks + 2), -1, np.int32)
        self.k = np.full((pages, page, KV_HEADS, D), np.nan, np.float32)
        self.v = np.full((pages, page, KV_HEADS, dv), np.nan, np.float32)
        for seq, n in enumerate(lens):
            used = -(-n // page)
            self.tables[seq, :used] = ids[seq * blocks : seq * blocks + used]
            for pool in (self.k, self.v):
                flat = pool[self.tables[seq, :used]].reshape(-1, *pool.shape[2:])
                flat[:n] = rng.standard_normal((n, *pool.shape[2:]))
                pool[self.tables[seq, :used]] = flat.reshape(-1, page, *pool.shape[2:])
        self.lens, self.q_lens, self.page, self.layout = np.array(lens), np.array(q_lens), page, layout
        self.q = (2 * rng.standard_normal((sum(q_lens), heads, D))).astype(dtype)
        self.k, self.v = self.k.astype(dtype), self.v.astype(dtype)
        if layout == "HND":
            self.k, self.v = (np.ascontiguousarray(pool.swapaxes(1, 2)) for pool in (self.k, self.v))
        self.given = self.q, self.k, self.v, self.tables, self.lens
        self.options = {"q_lens": self.q_lens, "layout": layout}

    def rows(self, scale=D**-0.5, softcap=None, window=None):
        """Yields (token, head, scores, values) of every row, float64."""
        k, v = (pool.astype(np.float64) for pool in (self.k, self.v))
        if self.layout == "HND":
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        token = 0
        for table, n, rows in zip(self.tables, self.lens, self.q_lens):
            used = table[: -(-n // self.page)]
            keys, values = (pool[used].reshape(-1, *pool.shape[2:])[:n] for pool in (k, v))
            for row in range(rows):
                end = max(0, n - rows + row + 1)
                seen = slice(max(0, end - (window or end)), end)
                for head in range(self.q.shape[1]):
                    of = head // (self.q.shape[1] // KV_HEADS)
                    scores = keys[seen, of] @ self.q[token, head].astype(np.float64) * scale
                    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
                    yield token, head, scores, values[seen, of]
                token += 1

    def expected(self, beta=lambda scores: 1.0, **options):
        out = np.zeros((*self.q.shape[:2], self.v.shape[3]))
        for token, head, scores, values in self.rows(**options):
            if len(scores):
                weights = np.exp(beta(scores) * (scores - scores.max()))
                out[token, head] = weights / weights.sum() @ values
        return out


def interleaved(case):
    both = np.stack([case.k, case.v], axis=2)
    return both[:, :, 0], both[:, :, 1]


def in_layers(case):
    # One layer of a pool of several, behind other memory of its pages.
    k, v = (np.concatenate([pool, pool], axis=1)[:, : case.page] for pool in (case.k, case.v))
    return k, v
