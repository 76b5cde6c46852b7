"""Exit with code 0 if the server in this container works: Docker's HEALTHCHECK."""

import os
import sys
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('VILA_PORT', '8000')}/health"
try:
    with urllib.request.urlopen(url, timeout=4) as answer:
        sys.exit(answer.status != 200)
except OSError as error:
    sys.exit(f"{url}: {error}")
