from gptbridge.testing import BackendConformance


class TestPaddle(BackendConformance):
    backend = "paddle"
