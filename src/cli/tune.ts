/** `troupe tune`, and what `--retune` does before a run: finds the forms of kernels that are fastest on this device. */
import type { Backend } from "../backend/backend.ts";
import { deviceOptions, openBackend } from "../backend/open.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { countOf } from "../observe/format.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { kernelsOf } from "../train/kernel_trial.ts";
import { type Found, tune, type TuneOptions } from "../train/tune.ts";
import { openTuningCache, tuningFolder } from "../train/tuning_cache.ts";
import { ArgumentError } from "./parser.ts";
import { getRecordParser, recordFromArguments, say, type Verb } from "./verb.ts";

const summary = "find the forms of a run's kernels that are fastest on this device, and keep them for its runs";

const description = `${summary}

  troupe tune
  troupe tune --config configs/demo.yaml --seconds 300
  troupe train --retune

Every form does the work of the run's kernels, is checked against the reference, then timed. What was found before is kept,
unless --retune is given. Runs that begin afterwards take it up, and keep to it when they go on: it changes the order of
sums, and so last bits. Nothing needs it: the shipped forms are chosen by experience.`;

const seconds = (value: number) =>
  value < 1e-3 ? `${(value * 1e6).toPrecision(3)} us` : `${(value * 1e3).toPrecision(3)} ms`;

/** One answer, for people. */
function describe({ choice, tried }: Found): string {
  const [shipped] = Object.keys(tried) as [string], timed = (name: string) => tried[name] as { seconds: number };
  const refused = Object.values(tried).filter((each) => "refused" in each).length;
  const apart = refused === 0 ? "" : `; ${refused} refused`;
  if (choice === shipped) return `${shipped} stays (${seconds(timed(shipped).seconds)})${apart}`;
  const gain = timed(shipped).seconds / timed(choice).seconds;
  return `${choice} instead of ${shipped}, ${gain.toFixed(2)} times as fast (${
    seconds(timed(choice).seconds)
  })${apart}`;
}

/** Tunes what a record's kernels ask and is not kept yet, or all of it, and keeps what is found. */
export async function tuneFor(
  config: ResolvedConfig,
  { backend, world = 1, retune, seconds, folder = tuningFolder(), json = false }: {
    backend: Backend;
    /** Ranks of the run, whose parts of tensors are what kernels work on. */
    world?: number;
    retune: boolean;
    seconds: number;
    folder?: string | undefined;
    json?: boolean;
  },
): Promise<void> {
  const { traits } = backend;
  if (backend.choices === undefined || traits.adapter === undefined) {
    return say(`Nothing to tune: the ${backend.name} backend has one form of every kernel`);
  }
  const cache = openTuningCache(traits.adapter, { folder, onNotice: say });
  const kernels = kernelsOf(config, traits, runMesh(config, { rank: 0, world }));
  say(`Tuning kernels of ${config.JOB_NAME} on ${traits.description}, ${seconds} s at most`);
  const onFound: TuneOptions["onFound"] = ({ question: { question }, found, problem, done, of }) => {
    say(`  ${done}/${of} ${question}: ${found ? describe(found) : `left as it is: ${problem}`}`);
    if (json && found) console.log(JSON.stringify({ question, ...found }));
  };
  const known = (question: string) => !retune && Object.hasOwn(cache.choices, question);
  const { found, left } = await tune(kernels, { backend, known, seconds, onFound });
  cache.save(found);
  const kept = Object.keys(cache.choices).length;
  const others = [...found].filter(([, { choice, tried }]) => choice !== Object.keys(tried)[0]).length;
  if (found.size > 0) {
    say(`${countOf(found.size, "question")} answered, ${others} by another form than the shipped one`);
  } else if (left === 0) say(`Nothing is left to tune: ${kept} answers are kept in ${folder}`);
  if (left > 0) say(`${countOf(left, "question")} left, as time is up: troupe tune goes on with them`);
}

export const tuneVerb: Verb = {
  summary,
  async run(args) {
    const parser = getRecordParser()
      .addArgument("--seconds", {
        type: "float",
        default: 120,
        help: "How long to try, at most; the weightiest kernels first",
      });
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("tune", description));
      return 0;
    }
    const limit = parsed.seconds as number;
    if (!(limit > 0)) throw new ArgumentError(`--seconds: ${limit} is not above 0`);
    const config = await recordFromArguments(parsed), { backend: name, nproc } = config.runtime;
    using backend = await openBackend(name, deviceOptions(config.runtime));
    const { retune, json } = parsed;
    await tuneFor(config, { backend, world: nproc, retune, seconds: limit, json });
    return 0;
  },
};
