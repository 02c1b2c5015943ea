export function serveParquet(_port: unknown): void {}
