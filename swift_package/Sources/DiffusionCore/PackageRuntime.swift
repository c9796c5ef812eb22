/// Runs the packages of one bundle: Core ML, Core AI, or the executor behind a pipe.
///
/// Values stay with the runtime in numbered contexts, one per prompt. A package takes its inputs from
/// its context and leaves its outputs there. Only values that the host asks for are copied.
public protocol PackageRuntime: Sendable {
  /// The digest of the bundle whose packages it runs. A pipeline refuses the runtime of another bundle,
  /// whose packages may well have the same names. nil: not known, and not compared.
  var bundleDigest: String? { get }
  /// Loads a package; does nothing if it is loaded already.
  func load(_ package: Manifest.Package) async throws
  /// Releases a package; does nothing if it is not loaded.
  func unload(_ package: Manifest.Package) async
  /// Runs a loaded package once, after adding `values` to the context.
  func run(_ package: Manifest.Package, context: Int, giving values: [String: Tensor]) async throws
  /// Returns a value of the context.
  func value(_ name: String, context: Int) async throws -> Tensor
  /// Releases all packages and values and the resources behind them. `load` starts again.
  func release() async
}

extension PackageRuntime {
  /// For runtimes written before this was asked.
  public var bundleDigest: String? { nil }
}
