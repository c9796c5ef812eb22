import MatryoshkaDiffusion

#if canImport(CoreAI) || COREAI_SHIM
  import DiffusionCoreAI
#endif

/// What needs Core AI: running, and the test of the device. Type-checked on Linux; not run on a Mac.
struct CoreAICommands {
  let options: CommandLineOptions
  let bundle: BundleFolder

  #if canImport(CoreAI) || COREAI_SHIM
    func runtime() throws -> any PackageRuntime {
      guard #available(macOS 27, iOS 27, tvOS 27, watchOS 27, visionOS 27, *) else { throw absent }
      return try CoreAIRuntime(bundle: bundle, computeUnits: options.computeUnits)
    }

    /// Decibels, and a remark on units that did not pass.
    func selfTest() async throws -> (psnr: Double, remark: String?) {
      guard #available(macOS 27, iOS 27, tvOS 27, watchOS 27, visionOS 27, *) else { throw absent }
      let runtime = try CoreAIRuntime(bundle: bundle, computeUnits: options.computeUnits)
      let found = try await runtime.selfTest()
      return (found.attempts.last?.psnr ?? -.infinity, found.remark)
    }
  #else
    func runtime() throws -> any PackageRuntime { throw absent }
    func selfTest() async throws -> (psnr: Double, remark: String?) { throw absent }
  #endif

  private var absent: MatryoshkaError {
    .invalidArgument(
      name: "Core AI", reason: "is not on this system; run this command on macOS 27, or add --runtime pipe")
  }
}
