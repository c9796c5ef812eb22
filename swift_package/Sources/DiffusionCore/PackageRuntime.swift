/// Something that runs the packages of one bundle: Core ML, or the executor behind a pipe.
///
/// Values stay with the runtime, in numbered contexts (one per prompt): a package takes its inputs
/// from its context and leaves its outputs there, and only what the host asks for is copied.
public protocol PackageRuntime: Sendable {
  /// Loads a package; does nothing where it is loaded.
  func load(_ package: Manifest.Package) async throws
  /// Releases a package; does nothing where it is not loaded.
  func unload(_ package: Manifest.Package) async
  /// Runs a loaded package once, after adding `values` to the context.
  func run(_ package: Manifest.Package, context: Int, giving values: [String: Tensor]) async throws
  /// A value of the context.
  func value(_ name: String, context: Int) async throws -> Tensor
  /// Releases all packages and values, and whatever stands behind them; `load` starts anew.
  func release() async
}
