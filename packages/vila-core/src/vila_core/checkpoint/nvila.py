class NvilaFormat:
    name = "nvila"
    def detect(self, path): return False
    def read(self, path): raise AssertionError
    def write(self, checkpoint, path): raise AssertionError
