"""Config files of a stranger that write elsewhere, connect, read the environment, or grow: each an ``experiment``.

OUTSIDE stands for a folder that is nobody's business, PORT for a port that is listened to, and CANARY for a
variable of the environment whose value must not be seen anywhere.
"""

from rlhf_lightning.config.bounds import DEEPEST

LOGGERS = "lightning.pytorch.loggers"
CALLBACKS = "lightning.pytorch.callbacks"
OF_CSV = f"_target_: {LOGGERS}.CSVLogger, save_dir: '${{run_dir}}'"
OF_CHECKPOINT = f"_target_: {CALLBACKS}.ModelCheckpoint"
OF_PROFILER = "_target_: lightning.pytorch.profilers.SimpleProfiler"
TASK = "_target_: rlhf_lightning.tasks.miniature.prepare.prepare_miniature"
SECRET = "${oc.env:CANARY}"
TWICE = "\n".join(f"a{i}: ${{a{i - 1}}}${{a{i - 1}}}" for i in range(1, 41))
BOTH = "\n".join(f"a{i}: {{x: '${{a{i - 1}}}', y: '${{a{i - 1}}}'}}" for i in range(1, 41))
LAUGHS = "a0: &a0 [x, x, x, x]\n" + "\n".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 20)
)
MERGED = "a: &a {" + ", ".join(f"k{i}: 1" for i in range(200)) + "}\nb: {<<: [" + ", ".join(["*a"] * 500) + "]}"

WRITES = {
    "output": "sft: {output: OUTSIDE/model}",
    "output_above": "sft: {output: '${run_dir}/../../../../../../../../../../../../../../OUTSIDE/model'}",
    "output_beside": "sft: {output: somewhere}",
    "output_home": "sft: {output: '~/model'}",
    "output_linked": "sft: {output: runs/link/model}",
    "output_repeated": "here: OUTSIDE\nsft: {output: '${here}/model'}",
    "output_from_what_is_read": "data: {prompts: OUTSIDE/model}\nsft: {output: '${data.prompts}'}",
    "output_over_the_data": "data: {demonstrations: OUTSIDE/kept}\nsft: {output: '${data.demonstrations}'}",
    "output_of_python": "sft: {output: !!python/object/apply:pathlib.PosixPath [OUTSIDE]}",
    "output_of_bytes": "x: {dirpath: !!binary L3RtcC9ldmls}",
    "output_with_nul": 'sft: {output: "a\\0b"}',
    "next_stage": "best_of_n: {sft: {output: OUTSIDE}}",
    "task": f"task: {{{TASK}, root: OUTSIDE}}",
    "task_in_a_task": f"task: {{a: {{{TASK}, root: OUTSIDE}}}}",
    "root_above": "output_root: ..",
    "root_absolute": "output_root: OUTSIDE",
    "root_of_all": "output_root: .",
    "root_hidden": "output_root: .git/hooks",
    "run_folder": "run_dir: OUTSIDE/run",
    "run_folder_above": "run_dir: ../run",
    "stage_name": "stage_name: ../../../OUTSIDE",
    "trainer_root": "trainer: {default_root_dir: OUTSIDE}",
    "profiler": f"trainer: {{profiler: {{{OF_PROFILER}, dirpath: OUTSIDE}}}}",
    "profiler_file": f"trainer: {{profiler: {{{OF_PROFILER}, dirpath: '${{run_dir}}', filename: ../../x}}}}",
    "callback": f"callbacks: {{c: {{{OF_CHECKPOINT}, dirpath: OUTSIDE}}}}",
    "callback_beside": f"callbacks: {{c: {{{OF_CHECKPOINT}, dirpath: mine}}}}",
    "callback_file": f"callbacks: {{c: {{{OF_CHECKPOINT}, dirpath: '${{run_dir}}', filename: OUTSIDE/x}}}}",
    "callback_nameless": f"callbacks: {{c: {{{OF_CHECKPOINT}, _args_: [mine]}}}}",
    "callback_by_interpolation": f"data: {{c: {{{OF_CHECKPOINT}, dirpath: OUTSIDE}}}}\ncallbacks: {{c: '${{data.c}}'}}",
    "best_policy": "ppo: {best_policy: {folder: OUTSIDE}}",
    "history": "callbacks: {h: {_target_: rlhf_lightning.callbacks.history.History, path: mine.jsonl}}",
    "history_over_the_data": "callbacks: {h: {_target_: rlhf_lightning.callbacks.history.History, "
    "path: '${model.path}'}}\nmodel: {path: OUTSIDE/kept}",
    "rows": "x: {_target_: rlhf_lightning.labelling.ranking.write_rows, file: kept.txt, rows: [{a: 1}]}",
    "lines": "x: {_target_: rlhf_lightning.tasks.folders.write_jsonl, path: kept.txt, rows: []}",
    "logger_folder": f"logger: {{_target_: {LOGGERS}.CSVLogger, save_dir: OUTSIDE}}",
    "logger_name": f"logger: {{{OF_CSV}, name: ../../../OUTSIDE}}",
    "logger_version": f"logger: {{{OF_CSV}, version: OUTSIDE}}",
    "logger_prefix": f"logger: {{{OF_CSV}, name: 'a/ .. /b'}}",
    "logger_backslash": f"logger: {{{OF_CSV}, name: '..\\x'}}",
    "unknown_key": "notes: OUTSIDE/notes.txt",
    "in_a_list": "evaluate: {judges: [{_target_: torchmetrics.MeanMetric, cache_dir: OUTSIDE}]}",
    "of_windows": "notes: 'C:\\Users\\x'",
}
CONNECTS = {
    "tensorboard": f"logger: {{_target_: {LOGGERS}.TensorBoardLogger, save_dir: 's3://bucket/x'}}",
    "csv": f"logger: {{_target_: {LOGGERS}.CSVLogger, save_dir: 'http://127.0.0.1:PORT/x'}}",
    "mlflow": f"logger: {{_target_: {LOGGERS}.MLFlowLogger, tracking_uri: 'http://127.0.0.1:PORT'}}",
    "mlflow_by_default": f"logger: {{_target_: {LOGGERS}.MLFlowLogger}}",
    "mlflow_of_module": f"logger: {{_target_: {LOGGERS}.mlflow.MLFlowLogger}}",
    "wandb": f"logger: {{_target_: {LOGGERS}.WandbLogger}}",
    "comet": f"callbacks: {{x: {{_target_: {LOGGERS}.CometLogger}}}}",
    "neptune": f"logger: {{a: {{_target_: {LOGGERS}.NeptuneLogger}}}}",
    "several": f"trainer: {{logger: [{{_target_: {LOGGERS}.WandbLogger}}]}}",
    "data": "data: {demonstrations: 'https://127.0.0.1:PORT/rows.jsonl'}",
    "data_of_hub": "data: {prompts: 'hf://datasets/x/y'}",
    "data_of_file": "data: {prompts: 'file:///etc/passwd'}",
    "data_chained": "data: {prompts: 'simplecache::s3://x'}",
    "data_of_windows": "data: {prompts: '\\\\host\\share'}",
    "data_of_host": "data: {prompts: //host/share}",
    "data_by_copy": "data: {prompts: 'me@host.example:rows.jsonl'}",
    "model": "model: {path: 'https://127.0.0.1:PORT/model'}",
    "policy": "evaluate: {policies: {x: 'git+ssh://host/x'}}",
    "host_and_port": "judge: {name: 'localhost:PORT'}",
    "six": "judge: {name: '[::1]:PORT'}",
    "host": "judge: {host: localhost}",
    "endpoint": "judge: {apiEndpoint: x}",
    "port": "x: {port: PORT}",
    "meeting": "trainer: {strategy: {_target_: lightning.pytorch.strategies.DDPStrategy, init_method: env}}",
    "cluster": "trainer: {plugins: [{_target_: lightning.pytorch.plugins.environments.LightningEnvironment}]}",
    "nodes": "trainer: {num_nodes: 2}",
    "main_address": "trainer: {main_address: 127.0.0.1}",
    "servers": "rollout: {_target_: rlhf_lightning.rollout.server.engine.ServerEngine, urls: [x]}",
    "program": "rollout: {_target_: rlhf_lightning.rollout.server.engine.ServerEngine, start: true, program: [sh]}",
}
ASKS = {
    "variable": f"x: '{SECRET}'",
    "variable_in_a_path": f"sft: {{output: '${{run_dir}}/{SECRET}'}}",
    "variable_in_data": f"data: {{prompts: '{SECRET}'}}",
    "variable_nested": "n: CANARY\nx: '${oc.env:${n}}'",
    "variable_by_name": "n: oc\nx: '${${n}.env:CANARY}'",
    "variable_with_default": "x: '${oc.env:CANARY,none}'",
    "variable_decoded": "y: '$'\nx: \"${oc.decode:'${y}{oc.env:CANARY}'}\"",
    "variable_created": "y: '{logger: {api_key: \"\\${oc.env:CANARY}\"}}'\nx: '${oc.create:${y}}'",
    "variable_selected": f"y: '{SECRET}'\nx: '${{oc.select:y}}'",
    "variable_in_values": f"y: {{a: '{SECRET}'}}\nx: '${{oc.dict.values:y}}'",
    "variable_as_target": f"x: {{_target_: '{SECRET}'}}",
    "variable_as_number": f"seed: '{SECRET}'",
    "variable_of_dotted_key": f"'sft.output': '{SECRET}'",
    "variable_in_defaults": f"defaults: [{{/kl: '{SECRET}'}}]",
    "variable_as_file": f"defaults: ['/experiment/{SECRET}']",
    "variable_of_hydra": f"hydra: {{job_logging: {{formatters: {{plain: {{format: '{SECRET}'}}}}}}}}",
    "variable_of_help": f"hydra: {{run: {{dir: '${{run_dir}}/{SECRET}'}}}}",
    "variable_in_run_dir": f"run_dir: 'runs/{SECRET}'",
    "variable_in_root": f"output_root: 'runs/{SECRET}'",
    "token_of_slurm": "x: '${oc.env:SLURM_JWT}'",
    "home": "data: {prompts: '${oc.env:HOME}/x'}",
    "expanded": f"logger: {{{OF_CSV}, name: $CANARY}}",
    "expanded_braces": f"logger: {{{OF_CSV}, name: '\\${{CANARY}}'}}",
    "formatted": f"callbacks: {{c: {{{OF_CHECKPOINT}, filename: '{{a].__class__.__init__.__globals__}}'}}}}",
    "log_format": "hydra: {job_logging: {formatters: {plain: {format: bogus}}}}",
    "log_style": "hydra: {job_logging: {formatters: {plain: {style: '{', format: '{exc_info}'}}}}",
}
TYPES_FOR_THE_USER = {
    "overrides": "hydra: {overrides: {task: ['trusted_targets=[os]']}}\ntrusted_targets: [os]",
    "overrides_of_hydra": "hydra: {overrides: {hydra: ['hydra.run.dir=OUTSIDE']}}\nrun_dir: OUTSIDE",
    "mode": "hydra: {mode: MULTIRUN}",
    "sweep": "hydra: {mode: MULTIRUN, sweeper: {params: {trusted_targets: '[os]'}}}",
    "sweep_params": "hydra: {sweeper: {params: {sft.output: OUTSIDE}}}",
}
GROWS = {
    "laughs": LAUGHS,
    "laughs_in_a_text": "y: |\n  " + LAUGHS.replace("\n", "\n  ") + "\nx: '${oc.create:${y}}'",
    "merged": MERGED,
    "doubled": f"a0: xxxxxxxxxx\n{TWICE}",
    "doubled_in_run_dir": f"run_dir: '${{a40}}'\na0: xxxxxxxxxx\n{TWICE}",
    "doubled_for_hydra": f"hydra: {{job_logging: {{formatters: {{plain: {{format: '${{a40}}'}}}}}}}}\na0: x\n{TWICE}",
    "doubled_containers": f"a0: {{x: 1}}\n{BOTH}",
    "doubled_values": f"a0: {{x: 1}}\n{BOTH}\nz: '${{oc.dict.values:a40}}'",
    "repeated": f"a: [{', '.join('x' * 900)}]\n" + "\n".join(f"b{i}: ${{a}}" for i in range(900)),
    "chained": "a0: x\n" + "\n".join(f"a{i}: ${{a{i - 1}}}" for i in range(1, 1000)),
    "brackets": f"x: {'[' * 3000}{']' * 3000}",
    "very_many_brackets": f"x: {'[' * 100_000}{']' * 100_000}",
    "dashes": f"x:\n  {'- ' * (DEEPEST + 1)}x",
    "expression": "x: '" + "${oc.decode:" * 1000 + "}" * 1000 + "'",
    "expression_of_brackets": f"y: '{'[' * 500}{']' * 500}'\nx: '${{oc.decode:${{y}}}}'",
    "inside_itself": "a: &a [*a]",
    "mapping_inside_itself": "a: &a {b: *a}",
    "leads_to_itself": "a: ${a}",
    "leads_to_each_other": "a: {b: '${b}'}\nb: {c: '${a}'}",
    "defaults_of_itself": "defaults: [defaults_of_itself]",
    "defaults_inside_itself": "defaults: [/experiment@x: defaults_inside_itself]",
    "flat": "\n".join(f"k{i}: v" for i in range(100_000)),
    "digits": f"x: {'9' * 5000}",
    "hexadecimal": f"seed: 0x{'f' * 5000}",
    "not_a_number": "checkpoint: {every_n_minutes: .nan}",
    "not_a_number_of_others": "callbacks: {c: {_target_: torchmetrics.MeanMetric, x: .NaN}}",
    "infinite": "sft: {optimizer: {lr: .inf}}",
    "no_text": "x: \udcff",
    "no_integer": "x: !!int abc",
    "no_date": "x: !!timestamp 2001-99-99",
}
CONFIGS = WRITES | CONNECTS | ASKS | TYPES_FOR_THE_USER | GROWS
