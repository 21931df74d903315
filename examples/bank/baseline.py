"""What the model must beat: surprise by counting, in the same nats.

"Everyone" knows how frequent each category is and how its amounts are spread over all accounts
before the cut. "The account's own" also counts the account's categories and remembers each of its
amounts up to the moment, one narrow Gaussian each, leaning on "everyone" while there are few.
"""

import math
from collections import defaultdict

import numpy as np

import surprise
import transactions

# As narrow as the model's narrowest component, so that neither gains by precision alone.
WIDTH = math.exp(surprise.SPREAD_LOG_MIN)
STEP = WIDTH * math.sqrt(2 * math.pi)
BINS = int(14 / WIDTH)
CATEGORY_LEAN, AMOUNT_LEAN = 3.0, 1.0


class Everyone:
    def __init__(self, category, log_amount, categories):
        self.counts = np.bincount(category, minlength=categories) + 0.5
        self.spread = np.full((categories, BINS), 0.5 / BINS)
        np.add.at(self.spread, (category, (log_amount / WIDTH).astype(int)), 1.0)
        self.spread /= self.spread.sum(1, keepdims=True) * WIDTH
        self.shares = self.counts / self.counts.sum()

    def share(self, category):
        return self.shares[category]

    def density(self, category, log_amount):
        return self.spread[category, (log_amount / WIDTH).astype(int)]


def surprises(events, table, before_cut):
    """The two parts of the surprise [events, 2] by "everyone" and by "the account's own"."""
    category = table[surprise.codes(events.x)].argmax(1)
    log_amount = np.log1p(events.x[:, transactions.AMOUNT].astype(np.float64))
    everyone = Everyone(category[before_cut], log_amount[before_cut], table.shape[1])
    share, density = everyone.share(category), everyone.density(category, log_amount)
    of_all = -np.log(np.stack([share, density * STEP], 1))
    own = np.zeros_like(of_all)
    for rows in events.by_account():
        seen = defaultdict(list)
        for count, row in enumerate(rows):
            before = np.array(seen[category[row]])
            distance = (log_amount[row] - before) / WIDTH
            kernels = np.exp(-0.5 * distance**2).sum() / STEP
            p_category = (len(before) + CATEGORY_LEAN * share[row]) / (count + CATEGORY_LEAN)
            p_amount = (kernels + AMOUNT_LEAN * density[row]) / (len(before) + AMOUNT_LEAN)
            own[row] = -math.log(p_category), -math.log(p_amount * STEP)
            seen[category[row]].append(log_amount[row])
    return of_all, own
