"""`python -m zsmld` is `zsmld`."""

from zsmld.cli import main

raise SystemExit(main())
