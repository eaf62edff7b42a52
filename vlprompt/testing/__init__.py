"""Hold a method of one's own to what every method must do, as scikit-learn's check_estimator does for estimators."""

from vlprompt.testing.case import MethodCase as MethodCase
from vlprompt.testing.failures import CheckFailure as CheckFailure
from vlprompt.testing.suite import Check as Check
from vlprompt.testing.suite import CheckResult as CheckResult
from vlprompt.testing.suite import check_method as check_method
from vlprompt.testing.suite import iter_checks as iter_checks
from vlprompt.testing.suite import parametrize_with_checks as parametrize_with_checks
