"""The data set and the network of tests/test_train.py."""

from tests.test_train import folder as folder
