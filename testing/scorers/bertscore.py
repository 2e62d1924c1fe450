"""bertscore: does the rewriting say what the human rewriting says, word by word in context? BERTScore F1.

Zhang et al. 2020 (arXiv 1904.09675), computed by their library (`pip install -r requirements-eval.txt`). The model is
--bertscore_model, a Hub id or folder; its raw F1 lies in a narrow band, so compare it with other rows of the same
table.
"""

import pandas as pd

from testing.scorers import Measure
from utils.configs import ScoreConfig, names
from utils.helpers import UserError

MEASURES = {"bertscore": Measure("BERTScore F1 to the best reference, 0..1", "higher", "meaning")}


def score(frame: pd.DataFrame, config: ScoreConfig) -> pd.DataFrame:
    """Missing where a row has no reference; 0 for an empty rewriting."""
    try:
        from bert_score import score as bert_score
    except ModuleNotFoundError as error:
        raise UserError("--scorers bertscore: pip install -r requirements-eval.txt") from error
    columns = names(config.reference_columns)
    given = {n: [row[c] for c in columns if row[c].strip()] for n, row in frame.iterrows()}
    rows = [n for n in frame.index if given[n]]
    scores = pd.Series(float("nan"), index=frame.index)
    said = [n for n in rows if frame.at[n, config.output_column].strip()]
    scores[rows] = 0.0
    if said:
        try:
            found = bert_score(
                [frame.at[n, config.output_column] for n in said],
                [given[n] for n in said],
                model_type=config.bertscore_model,
                num_layers=config.bertscore_layer,
            )
        except KeyError as error:  # the library knows which layer is best for some names only
            raise UserError(f"--bertscore_model {config.bertscore_model}: give --bertscore_layer as well") from error
        except (OSError, OverflowError) as error:  # not there, or its tokenizer does not say how long a text may be
            raise UserError(f"--bertscore_model {config.bertscore_model}: {str(error).splitlines()[0]}") from error
        scores[said] = found[2].numpy().astype(float)
    return pd.DataFrame({"bertscore": scores})
