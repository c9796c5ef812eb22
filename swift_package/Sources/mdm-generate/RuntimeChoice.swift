import MatryoshkaDiffusion

/// The runtimes that can run packages.
enum RuntimeChoice: String, CaseIterable {
  case coreml, coreai, pipe

  /// Apple's, if this system has the one that the bundle is for.
  static func ofThisSystem(for format: Manifest.Format) -> RuntimeChoice {
    #if canImport(CoreAI) && !COREAI_SHIM
      if format == .coreai { return .coreai }
    #endif
    #if canImport(CoreML) && !COREML_SHIM
      if format == .coreml { return .coreml }
    #endif
    return .pipe
  }

  func runtime(_ options: CommandLineOptions, _ bundle: BundleFolder) throws -> any PackageRuntime {
    switch self {
    case .pipe: try PipeCommand(options: options, bundle: bundle).runtime()
    case .coreml: try CoreMLCommands(options: options, bundle: bundle).runtime()
    case .coreai: try CoreAICommands(options: options, bundle: bundle).runtime()
    }
  }

  /// What computes, as recipes name it.
  func backend(for format: Manifest.Format) -> Recipe.Backend {
    guard format == .coreml else { return .coreai }
    return self == .pipe ? .reference : .coreml
  }

  /// What computes, as result files name it. Behind the pipe that is `mdm`, whose executor runs Core ML
  /// packages and Apple's interpreter those of Core AI.
  func engine(for format: Manifest.Format) -> String {
    guard self == .pipe else { return rawValue }
    return format == .coreml ? "executor" : "interpreter"
  }
}
