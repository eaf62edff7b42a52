"""What results, papers and other libraries call a metric, for the message about a name that there is not."""

import re
from collections.abc import Mapping, Sequence

SYNONYMS: Mapping[str, str] = {  # name of a metric or table -> in small letters, without "_", "-", "@" ...
    "accuracy": "acc top1 acc1 top1accuracy accuracyscore overallaccuracy",
    "top3": "acc3 top3accuracy",
    "top5": "acc5 top5accuracy",
    "class_mean": "balancedaccuracy balancedaccuracyscore meanclassaccuracy meanperclassaccuracy macroaccuracy",
    "macro_f1": "f1 f1score macrof1score",
    "macro_f1_all": "f1 f1score f1macro macrof1score",
    "weighted_f1": "f1 f1score f1weighted",
    "micro_f1": "f1 f1score f1micro",
    "CF1": "f1 f1score",
    "CF1_mean": "f1 f1score f1macro macrof1score",
    "OF1": "f1 f1score f1micro",
    "macro_precision": "precision precisionscore precisionmacro",
    "weighted_precision": "precision precisionscore precisionweighted",
    "macro_recall": "recall recallscore recallmacro",
    "weighted_recall": "recall recallscore recallweighted",
    "matthews": "mcc matthewscorrcoef",
    "kappa": "cohenkappa cohenkappascore",
    "auroc": "auc rocauc aucroc rocaucscore",
    "auroc_ovr": "auc rocauc aucroc rocaucscore rocaucovr",
    "auroc_ovo": "rocaucovo",
    "aupr_in": "aupr auprc prauc",
    "aupr_out": "aupr auprc prauc",
    "fpr95": "fpr fpr95tpr fprat95tpr",
    "fpr95_at_least": "fpr fpr95tpr fprat95tpr",
    "fpr95_unknown": "fpr fpr95tpr fprat95tpr",
    "ece15": "ece calibrationerror expectedcalibrationerror",
    "ada_ece15": "aece adaece adaptiveece adaptivecalibrationerror",
    "mce15": "mce maximumcalibrationerror",
    "ace15": "ace",
    "average_ce15": "ace averagecalibrationerror",
    "sce15": "sce staticcalibrationerror",
    "classwise_ece15": "cece classwiseece",
    "nll": "negativeloglikelihood logloss crossentropy loss",
    "brier": "brierscore brierscoreloss",
    "mAP": "ap averageprecision averageprecisionscore meanaverageprecision",
    "harmonic": "h hm harmonicmean",
    "open_auc": "oscr",
}


def find_synonyms(name: str, known_names: Sequence[str]) -> list[str]:
    """Return the names of metrics that are called so elsewhere, or are written so but for case and signs."""

    def simplify(text: str) -> str:
        return re.sub("[^a-z0-9]", "", text.lower())

    plain = simplify(name)
    return [known for known in known_names if plain in (simplify(known), *SYNONYMS.get(known, "").split())]
