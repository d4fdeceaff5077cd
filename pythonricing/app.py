"""The application that servers load: `pythonricing.app:app`, made from the environment.

A bad setting is one line on stderr and exit status 2. Whatever needs `create_app` and not this effect finds it in
pythonricing.service.
"""

from __future__ import annotations

import os
import sys

from pythonricing.counting.model import StoreURLError
from pythonricing.service import create_app
from pythonricing.settings import Settings, SettingsError

try:
    app = create_app(Settings.from_environ(os.environ))
except (SettingsError, StoreURLError) as error:
    print(error, file=sys.stderr)
    raise SystemExit(2) from None
