/**
 * Parameters that several stages hold (a tied head is also the embedding of the first stage) exist on each of them. Their
 * gradients are summed over those stages before anything else is done with them; the same update on equal numbers then
 * keeps them equal.
 */
import type { Group } from "../comm/collectives/communicator.ts";
import type { Program, Wait } from "../graph/program.ts";
import type { SharedParameter } from "./stage.ts";

/** Sums in the order of stages, so that all of them get the same bits. */
export function* sumSharedGradients(
  shared: readonly SharedParameter[],
  { program, pipeline }: { readonly program: Program; readonly pipeline: Group },
): Generator<Wait, void> {
  if (shared.length === 0) return;
  const ranges = shared.map(({ name }) => program.parameterRange("gradient", name));
  const ticket = program.backend.read(ranges);
  yield ticket;
  const own = ticket.take();
  for (const [index, { stages }] of shared.entries()) {
    const length = own[index]!.byteLength / 4;
    const parts = stages.map(() => new Float32Array(new SharedArrayBuffer(4 * length)));
    const place = stages.indexOf(pipeline.index);
    parts[place]!.set(new Float32Array(own[index]!.buffer, own[index]!.byteOffset, length));
    const moved = Promise.all(
      stages.flatMap((stage, other) =>
        other === place ? [] : [pipeline.send(stage, parts[place]!), pipeline.receive(stage, parts[other]!)]
      ),
    );
    moved.catch(() => {}); // told to whoever waits
    yield { ready: () => moved };
    const sum = new Float32Array(length);
    for (const part of parts) part.forEach((value, i) => sum[i]! += value);
    program.backend.upload(ranges[index]!, sum);
  }
}
