/** `troupe verify DIR`: replays a reference training and says how far this machine strays from it. */
import { openBackend } from "../backend/open.ts";
import { defaultTolerances, verify as replay } from "../train/verify.ts";
import { ArgumentError, createParser, type ParsedArguments } from "./parser.ts";
import { say, type Verb } from "./verb.ts";
import { isOneOfSeveral, oneOfSeveral, verifyWithRanks } from "./verify_ranks.ts";

const summary = "replay a reference training and report how far this machine strays from it";

interface VerifyArguments extends ParsedArguments {
  readonly folder: string;
  readonly backend: "webgpu" | "cpu";
  readonly nproc: number;
  readonly set: readonly string[];
  readonly json: boolean;
  readonly help: boolean;
  readonly loss_tolerance: number | undefined;
  readonly grad_norm_tolerance: number | undefined;
  readonly logit_tolerance: number | undefined;
  readonly param_norm_tolerance: number | undefined;
}

function makeParser() {
  const tolerance = (what: string, standard: number) => (
    { type: "float", help: `${what}; ${standard} in float32, more in a half type` } as const
  );
  return createParser<VerifyArguments>()
    .addArgument("folder", { help: "Folder with config.json, model.safetensors and curve.json" })
    .addArgument("--backend", { choices: ["webgpu", "cpu"], default: "webgpu", help: "What computes" })
    .addArgument("--nproc", { type: "int", default: 1, help: "Ranks on this machine" })
    .addArgument("--set", { repeat: true, help: "Change a field of the run record: section.field=value" })
    .addArgument("--json", { type: "flag", help: "Standard output carries one line of JSON" })
    .addArgument("--loss_tolerance", tolerance("Largest error of a loss", defaultTolerances.loss))
    .addArgument(
      "--grad_norm_tolerance",
      tolerance("Largest relative error of a gradient norm", defaultTolerances.gradNorm),
    )
    .addArgument("--logit_tolerance", tolerance("Largest error of the first logits", defaultTolerances.logits))
    .addArgument(
      "--param_norm_tolerance",
      tolerance("Largest relative error of a final weight's norm", defaultTolerances.paramNorm),
    );
}

export const verify: Verb = {
  summary,
  async run(args) {
    const parser = makeParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("verify", summary));
      return 0;
    }
    const { nproc } = parsed;
    if (!(nproc >= 1)) throw new ArgumentError(`--nproc: ${nproc} ranks verify nothing; 1 or more would work`);
    if (nproc > 1 && !isOneOfSeveral()) return await verifyWithRanks(args, nproc);
    await using member = nproc > 1 ? oneOfSeveral() : undefined;
    const tells = (member?.rank ?? 0) === 0;
    using backend = await openBackend(parsed.backend);
    if (tells) say(`${parsed.folder} on ${nproc > 1 ? `${nproc} ranks, each on ` : ""}${backend.traits.description}`);
    let limits = defaultTolerances;
    const report = await replay(parsed.folder, {
      backend,
      nproc,
      ...(member ? { world: member.world } : {}),
      set: parsed.set,
      tolerances: {
        ...(parsed.loss_tolerance !== undefined && { loss: parsed.loss_tolerance }),
        ...(parsed.grad_norm_tolerance !== undefined && { gradNorm: parsed.grad_norm_tolerance }),
        ...(parsed.logit_tolerance !== undefined && { logits: parsed.logit_tolerance }),
        ...(parsed.param_norm_tolerance !== undefined && { paramNorm: parsed.param_norm_tolerance }),
      },
      onStart: (tolerances) => limits = tolerances,
      onStep: ({ step, steps, loss, expected }) =>
        tells && say(`step ${step + 1}/${steps}  loss ${loss.toFixed(6)}  reference ${expected.toFixed(6)}`),
    });
    if (!tells) return report.pass ? 0 : 1;
    if (parsed.json) console.log(JSON.stringify(report));
    else {
      const rows: [string, number, number][] = [
        ["loss", report.maxLossError, limits.loss],
        ["grad norm (relative)", report.maxGradNormRelError, limits.gradNorm],
        ["first logits", report.maxFirstLogitError, limits.logits],
        ["final weight norms (relative)", report.maxParamNormRelError, limits.paramNorm],
      ];
      console.log(
        `${report.case}: ${report.pass ? "pass" : "FAIL"}, ${report.steps} steps on ${report.backend}${
          nproc > 1 ? `, ${nproc} ranks` : ""
        }`,
      );
      for (const [what, error, limit] of rows) {
        const mark = error <= limit ? "" : "  <-- too large";
        console.log(`  ${what.padEnd(30)} ${error.toExponential(2)}  (limit ${limit.toExponential(0)})${mark}`);
      }
    }
    return report.pass ? 0 : 1;
  },
};
