"""The same comparison on MovieLens 100K, with times, and with TedRec where it has text to read.

    python -m lares_jax.compare --config=configs/compare_ml100k.py --workdir=runs/compare_ml100k \
        --config.data_path=../shared/data/ml-100k.inter

    python -m lares_jax.prepare --input=../shared/data/ml-100k.inter --output=runs/ml100k
    python -m lares_jax.data.text --data=runs/ml100k --input=../shared/data/ml-100k.item \
        --item=item_id --title=movie_title --encoder=words
    python -m lares_jax.compare --config=configs/compare_ml100k.py:text --workdir=runs/compare_ml100k \
        --config.data_path=runs/ml100k
"""

from configs import compare_beauty, lares

TIMES = {'hstu_times': {'model.backbone.name': 'hstu', 'model.backbone.times': True}}
COSINES = {'catalogue.similarity': 'cos', 'catalogue.tau': 0.07}  # of TedRec, and without its titles
TEXT = {'tedrec': {'model.fusion.name': 'tedrec', 'model.fusion.text_width': 128,  # of --encoder=words
                   **COSINES, **compare_beauty.PREFIX}}


def get_config(variant: str = ''):
  if variant not in ('', 'main', 'depth', 'text'):
    raise ValueError(f'{variant}: use no variant, main, depth or text')
  recipe = lares.get_config
  if variant == 'depth':
    return compare_beauty.plan(compare_beauty.depth(recipe))
  more = {**TIMES, **TEXT} if variant == 'text' else TIMES
  runs = compare_beauty.table(recipe, variant != 'main', more)
  runs['sasrec_cosines'] = compare_beauty.row(recipe, 'plain', COSINES)
  return compare_beauty.plan(runs)
