#if os(Linux) || os(macOS)
  import DiffusionCore
  import DiffusionPipe
  import TestBundle
  import Testing

  @Suite struct PipeRuntimeTests {
    /// A server that ends says how, beside its own message.
    @Test(arguments: [("exit 3", "with status 3"), ("kill -9 $$", "by signal 9")])
    func aServerThatEndsSaysHow(script: String, how: String) async throws {
      let small = try SmallBundle()
      let runtime = PipeRuntime(bundle: small.bundle, program: ["sh", "-c", script])
      #expect(runtime.bundleDigest == small.bundle.manifest.digest)
      let error = await #expect(throws: MatryoshkaError.self) {
        try await runtime.load(small.bundle.manifest.packages[0])
      }
      #expect(
        error?.errorDescription == "bundle server: it has ended \(how); its own message says why.")
    }
  }
#endif
