/** Exits 0 when a WebGPU adapter answers, 1 when none does: the launcher's question. */
const adapter = await navigator.gpu?.requestAdapter();
Deno.exit(adapter ? 0 : 1);
