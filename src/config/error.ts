/** One thing that is wrong with a run record. */
export interface ConfigProblem {
  /** The field, such as `model.hidden_size`; or a file. */
  readonly path: string;
  /** The value seen, what is wrong with it, and what would work. */
  readonly message: string;
}

/** A run record that cannot be run: everything that is wrong with it, at once. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";

  constructor(readonly problems: readonly ConfigProblem[]) {
    const count = problems.length === 1 ? "1 problem" : `${problems.length} problems`;
    super(
      [`The run record has ${count}:`, ...problems.map(({ path, message }) => `  ${path}: ${message}`)].join("\n"),
    );
  }
}
