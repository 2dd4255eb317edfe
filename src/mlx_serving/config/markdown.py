"""The reference of all settings as a page of the documentation."""

from __future__ import annotations

import sys

from mlx_serving.config.origin import dotted
from mlx_serving.config.reference import Setting, read_reference

_INTRODUCTION = """\
# Configuration

<!-- Made by `python -m mlx_serving.config.markdown`; a test compares the two. -->

Every setting has a default; `mlx-serving serve` needs no configuration. `mlx-serving config show` prints every value
and where it was set, `config check` lists every problem with a fix, `config schema` prints a JSON Schema for editors.

## Where values come from

Later sources win, value by value:

1. The defaults below.
2. One YAML file: `--config PATH`, else `$MLX_SERVING_CONFIG`, else `mlx-serving.yaml` in the working directory, else
   `mlx-serving/config.yaml` in `$XDG_CONFIG_HOME` (`~/.config`). The first one found is the only one read.
3. An overlay of that file: its top-level key `environments` maps names to further sections, of which `--env NAME` or
   `$MLX_SERVING_ENV` chooses one.
4. Environment variables: `MLX_SERVING_`, then the keys in upper case with `__` between them, as in
   `MLX_SERVING_SERVER__PORT=9000`.
5. Flags: those of the command (`--port 9000`), then `--set server.port=9000`, which can be repeated.

```yaml
server:
  port: 9000
  api_key: ${API_KEY}   # the variable API_KEY, so that the secret is not in the file
models:
  served:
    - model: smollm2-135m
    - model: ./models/my-model
      name: mine
environments:
  production:
    server:
      host: 0.0.0.0
```

A list replaces a list. One entry is changed by its index: `--set models.served.0.name=small`; the index after the last
one appends. In variables and flags, a value that begins with `[`, `{` or a quote is read as YAML, so lists can be
given whole; any other value is taken literally. An empty value and `~` are `null`.

`SIGHUP`, and `POST /admin/reload` with the admin key, have a running server read all of this again and go on with it.
Running requests are kept: settings of `scheduler`, `memory`, `worker` and the defaults of `generation` bring a fresh
worker, in which they go on; a served model with another `model`, `revision` or `context_length` is loaded beside the
old version, and they go on with it. Models that are not served any more stay for those who use them. What is not valid
is logged in full and changes nothing; a model that cannot be loaded leaves its old version. `server.host`,
`server.port`, `server.resume.file`, `server.resume_max_age_s` and `workers` need a new start.

Unknown keys and variables are errors. Secrets are shown as `**********` everywhere.
"""


def markdown() -> str:
    """The content of `docs/configuration.md`."""
    reference = read_reference()
    parts = [_INTRODUCTION]
    for section in reference.sections.values():
        rows = [setting for path, setting in reference.settings.items() if path[:-1] == section.path]
        if rows:
            title = f"`{dotted(section.path)}`" if section.path else "Outside of sections"
            parts.append(f"## {title}\n\n{section.description}\n")
            parts.append(_rows(rows))
    return "\n".join(parts)


def _rows(settings: list[Setting]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        default = f"`{setting.default_text}`" if setting.has_default else ""
        lines.append(f"| `{setting.path[-1]}` | {setting.requirement} | {default} | {setting.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
