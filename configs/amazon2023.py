"""Amazon Reviews 2023, the paper's data, with the paper's settings and both phases.

The data (https://amazon-reviews-2023.github.io) is the benchmark 5core/last_out:

    url=https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/5core/last_out
    for part in train valid test; do curl -fLO $url/Musical_Instruments.$part.csv.gz; done
    python -m lares_jax.prepare --input='Musical_Instruments.*.csv.gz' --output=data/instruments
    python -m lares_jax.main --config=configs/amazon2023.py:instruments --workdir=runs/instruments

`scientific` is Industrial_and_Scientific, `games` Video_Games, `baby` Baby_Products; each reads
data/NAME unless --config.data.path says otherwise. What to expect of test Recall@10 / NDCG@10
(history of 20, the whole catalogue ranked, history not excluded):

                                        instruments     scientific      games
    LARES, arXiv 2505.16865             .0636 / .0336   .0464 / .0245   .0972 / .0500
    LARES, its first author's later run .0610 / .0318   .0466 / .0236
    SASRec in the paper                 .0536 / .0277   .0385 / .0194   .0926 / .0446

Where this departs from the paper: several histories share a row of 64 tokens, so a step of 16 rows
holds about as many targets as the paper's 1,024 rows; of a history of more than 20 items some
targets see the latest 11 alone (data.rows=prefix shows all of them 20); its pairs are one for each
history in those rows, so that the alignment terms see some 200 negatives and not 1,023; their first
view is the state of the cross-entropy, not one of its own (pretrain.loss.views=separate is as
published); the reference of phase two shares the noise of the rollouts
(posttrain.loss.reference_noise=independent is as published).
"""

from lares_jax import config as config_lib

NAMES = ('instruments', 'scientific', 'games', 'baby')


def get_config(name: str = ''):
  if name not in NAMES:
    raise ValueError(f'amazon2023.py:{name}: use one of {", ".join(NAMES)}')
  config = config_lib.defaults()
  config.phases = 'pretrain,select,posttrain'
  config.data.path = f'data/{name}'
  config.data.prepare.format = 'amazon2023'
  config.data.max_history = config.model.positions = 20
  config.pretrain.train.batch_rows = 16
  return config
