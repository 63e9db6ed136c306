"""Chat templates in Jinja: those of a model folder, and a few prompt formats by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from eutectic.errors import nearest
from eutectic.recipes.faults import shown
from eutectic.recipes.values import fault
from eutectic.weights.checkpoint import read_json
from eutectic.weights.files import Place, open_file

__all__ = ["CHAT_TEMPLATE", "NAMED", "check_template", "choose_template", "template_of"]

CHAT_TEMPLATE = "chat_template.jinja"
AUTO = "auto"
_SYSTEM_FIRST = (
    "{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{%- else %}{% set system = '' %}{% set turns = messages %}{%- endif %}"
)
NAMED = {
    "chatml": (
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "llama3": (
        "{{- bos_token }}"
        "{%- for message in messages %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
        "{{- '<|eot_id|>' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
    ),
    "mistral": (
        "{{- bos_token }}" + _SYSTEM_FIRST + "{%- for message in turns %}"
        "{%- if message['role'] == 'user' %}"
        "{{- '[INST] ' + (system + '\\n\\n' if loop.first and system else '') }}"
        "{{- message['content'] | trim + ' [/INST]' }}"
        "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}"
        "{%- endfor %}"
    ),
    "alpaca": (
        _SYSTEM_FIRST + "{{- (system or 'Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.') | trim + '\\n\\n' }}"
        "{%- for message in turns %}"
        "{%- if message['role'] == 'user' %}{{- '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}"
        "{%- else %}{{- '### Response:\\n' + message['content'] | trim + eos_token + '\\n\\n' }}{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}"
    ),
    "exaone": (
        "{%- for message in messages %}"
        "{{- '[|' + message['role'] + '|]' + message['content'] | trim }}"
        "{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '[|assistant|]' }}{%- endif %}"
    ),
}  # fmt: skip


def template_of(folder: Place) -> str | None:
    """The chat template of a model folder: its own file's, or the default one of tokenizer_config.json."""
    if (folder / CHAT_TEMPLATE).is_file():
        file = open_file(folder / CHAT_TEMPLATE)
        return file.read(0, file.size).decode("utf-8", "replace")
    path = folder / "tokenizer_config.json"
    found = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def check_template(wanted: str) -> str:
    """Refuse what is neither a template nor a known name."""
    known = [AUTO, *NAMED]
    if wanted not in known and "{" not in wanted:
        hint = nearest(wanted, known)
        raise fault(f"must be {', '.join(known)} or a template in Jinja; found {shown(wanted)}{hint}")
    return wanted


def choose_template(wanted: str, folders: Iterable[Place]) -> str | None:
    """The template that a recipe asks for: by name, as it stands, or (auto) that of most folders."""
    if wanted == AUTO:
        found = Counter(text.strip() for folder in folders if (text := template_of(folder)))
        return found.most_common(1)[0][0] if found else None
    return NAMED.get(wanted, wanted)
