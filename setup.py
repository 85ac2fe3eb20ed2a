"""Which folders become packages; everything else is in pyproject.toml.

`configs/`, `datasets/` and `scripts/` lie at the top of a checkout. In a wheel they are folders of the package, such as
`dearli_d2/configs/`. `dearli_d2.files.beside_package` finds them in both.
"""

from setuptools import find_packages, setup

BESIDE = ("configs", "datasets", "scripts")

setup(
    packages=[*find_packages(include=["dearli_d2*"]), *(f"dearli_d2.{name}" for name in BESIDE)],
    package_dir={f"dearli_d2.{name}": name for name in BESIDE},
    include_package_data=False,  # the lines below name all that is no code
    package_data={
        "dearli_d2": ["assets/*", "assets/papers/*", "py.typed"],
        "dearli_d2.configs": ["**/*.yaml"],
        "dearli_d2.scripts": ["*.sh"],
    },
)
