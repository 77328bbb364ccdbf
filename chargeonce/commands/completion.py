"""`chargeonce completion SHELL`: the script by which a shell completes commands, options and values."""

import click
from click.shell_completion import get_completion_class

_LINES = {
    "bash": 'eval "$(chargeonce completion bash)"             # in ~/.bashrc',
    "zsh": 'eval "$(chargeonce completion zsh)"              # in ~/.zshrc, after compinit',
    "fish": "chargeonce completion fish | source              # in ~/.config/fish/config.fish",
}


@click.command(epilog="\b\nTo have it in each new shell:\n" + "\n".join(f"  {line}" for line in _LINES.values()))
@click.argument("shell", type=click.Choice(list(_LINES)))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    script = get_completion_class(shell)
    assert script is not None
    root = click.get_current_context().find_root().command
    click.echo(script(root, {}, "chargeonce", "_CHARGEONCE_COMPLETE").source())
