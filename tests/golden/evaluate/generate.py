"""Golden values of tunebook-evaluate: text metrics, reports of classifiers, intervals and tests.

Writes beside itself `pairs.json` (answers and references), `sacrebleu.json`, `rouge.json` and `squad.json` (their
scores), `stems.json` (of NLTK's stemmer), `classes.json` and `calibration.json` (scikit-learn), `label_issues.json`
(cleanlab), `intervals.json` (scipy and statsmodels). The same versions write the same bytes.

    pip install -r requirements.txt && python generate.py [text_metrics] [classes] [intervals]
"""

import sys

import classes
import intervals
import text_metrics

TOPICS = {"text_metrics": text_metrics, "classes": classes, "intervals": intervals}
for name in sys.argv[1:] or TOPICS:
    TOPICS[name].write()
