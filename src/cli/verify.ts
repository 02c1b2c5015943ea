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
  readonly loss_tolerance: number;
  readonly grad_norm_tolerance: number;
  readonly logit_tolerance: number;
  readonly param_norm_tolerance: number;
}

function makeParser() {
  const tolerance = (what: string, standard: number) => ({ type: "float", default: standard, help: what } as const);
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
    const report = await replay(parsed.folder, {
      backend,
      nproc,
      ...(member ? { world: member.world } : {}),
      set: parsed.set,
      tolerances: {
        loss: parsed.loss_tolerance,
        gradNorm: parsed.grad_norm_tolerance,
        logits: parsed.logit_tolerance,
        paramNorm: parsed.param_norm_tolerance,
      },
      onStep: ({ step, steps, loss, expected }) =>
        tells && say(`step ${step + 1}/${steps}  loss ${loss.toFixed(6)}  reference ${expected.toFixed(6)}`),
    });
    if (!tells) return report.pass ? 0 : 1;
    if (parsed.json) console.log(JSON.stringify(report));
    else {
      const rows: [string, number, number][] = [
        ["loss", report.maxLossError, parsed.loss_tolerance],
        ["grad norm (relative)", report.maxGradNormRelError, parsed.grad_norm_tolerance],
        ["first logits", report.maxFirstLogitError, parsed.logit_tolerance],
        ["final weight norms (relative)", report.maxParamNormRelError, parsed.param_norm_tolerance],
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
