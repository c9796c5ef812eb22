#if COREML_SHIM
  import CoreMLShim
  import DiffusionCore
  import DiffusionCoreML
  import Foundation
  import MatryoshkaDiffusion
  import Synchronization
  import TestBundle
  import Testing

  /// Names, shapes, precision, padded rows, reused buffers and the folder of compiled models: the
  /// plumbing, against a fake. Not what Core ML makes of it.
  @Suite struct CoreMLRuntimeTests {
    private static let base = FileManager.default.temporaryDirectory

    /// Counts; the compiled model is an empty folder.
    private final class Counts: Sendable {
      let compiled = Mutex(0)
      let offered = Mutex(0)
      let opened = Mutex<[Int]>([])
      let functions = Mutex<[String?]>([])

      func compile(_ package: URL) throws -> URL {
        compiled.withLock { $0 += 1 }
        let place = CoreMLRuntimeTests.base.appending(path: "compiled-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: place, withIntermediateDirectories: true)
        return place
      }

      /// A model that puts out, with padded rows, the mean of its inputs in every place.
      func open(_ package: Manifest.Package, _ configuration: MLModelConfiguration) -> MLModel {
        let units = configuration.computeUnits.rawValue
        opened.withLock { $0.append(units) }
        let function = configuration.functionName
        functions.withLock { $0.append(function) }
        return MLModel { inputs, backings in
          self.offered.withLock { $0 += backings.count }
          let values = try package.inputs.map { input -> Float in
            guard let array = inputs[input.name], array.dataType == .float16 else {
              throw CocoaError(.coderInvalidValue)
            }
            let values = try MultiArrays.tensor(array).values
            return values.reduce(0, +) / Float(values.count)
          }
          var outputs: [String: MLMultiArray] = [:]
          for output in package.outputs {
            let array = MLMultiArray(
              shape: output.shape.map { NSNumber(value: $0) }, dataType: .float16, padding: 3)
            array.withUnsafeMutableBytes { bytes, strides in
              for row in 0..<output.shape.dropLast().reduce(1, *) {
                for column in 0..<(output.shape.last ?? 0) {
                  let place = row * strides[strides.count - 2] + column
                  bytes.storeBytes(
                    of: HalfPrecision.bits(values.reduce(0, +)), toByteOffset: 2 * place,
                    as: UInt16.self)
                }
              }
            }
            outputs[output.name] = array
          }
          return outputs
        }
      }
    }

    private func runtime(
      _ bundle: BundleFolder, _ folder: URL, _ counts: Counts, system: String = "24A1"
    ) -> CoreMLRuntime {
      let models = CompiledModels(bundle: bundle, base: folder, system: system) {
        try counts.compile($0)
      }
      let packages = bundle.manifest.packages
      return CoreMLRuntime(models: models) { url, configuration in
        let name = configuration.functionName ?? url.deletingPathExtension().lastPathComponent
        guard let package = packages.first(where: { $0.name == name }) else {
          throw CocoaError(.fileNoSuchFile)
        }
        return counts.open(package, configuration)
      }
    }

    private func temporary() -> URL {
      CoreMLRuntimeTests.base.appending(path: "models-\(UUID().uuidString)")
    }

    @Test func aPictureIsMadeAndBuffersAreOfferedAgain() async throws {
      let small = try SmallBundle()
      let (folder, counts) = (temporary(), Counts())
      defer { try? FileManager.default.removeItem(at: folder) }
      let pipeline = Pipeline(bundle: small.bundle, runtime: runtime(small.bundle, folder, counts))
      let request = PictureRequest(prompt: "", sampler: SamplerSettings(steps: 3))
      var finished: Finished?
      for try await step in pipeline.generate(request) { finished = step.finished }
      #expect(finished?.pictures.map(\.width) == [8, 4])
      #expect(counts.compiled.withLock { $0 } == 3)
      // From the second step on, all four outputs.
      #expect(counts.offered.withLock { $0 } == 8)
      #expect(counts.opened.withLock { $0 } == [2, 2, 2])  // .all
      #expect(counts.functions.withLock { $0 } == [nil, nil, nil])
    }

    @Test func functionsAreOpenedByNameAndCompiledOnce() async throws {
      let small = try SmallBundle(.functions)
      let (folder, counts) = (temporary(), Counts())
      defer { try? FileManager.default.removeItem(at: folder) }
      let pipeline = Pipeline(bundle: small.bundle, runtime: runtime(small.bundle, folder, counts))
      for side in [4, 8] {
        let sampler = SamplerSettings(steps: 2)
        let request = PictureRequest(prompt: "", sampler: sampler, stopAt: side)
        for try await step in pipeline.generate(request) where step.finished != nil {
          #expect(step.finished?.picture.width == side)
        }
      }
      #expect(counts.functions.withLock { $0 } == ["stop_4", "stop_8"])
      #expect(counts.compiled.withLock { $0 } == 1)
    }

    @Test func modelsAreOpenedForShapesThatStay() {
      let configuration = MLModelConfiguration(.cpuAndNeuralEngine)
      #expect(configuration.computeUnits == .cpuAndNeuralEngine)
      #expect(configuration.optimizationHints.reshapeFrequency == .infrequent)
    }

    @Test func packagesAreCompiledOncePerSystemAndOldOnesRemoved() async throws {
      let small = try SmallBundle()
      let (folder, counts) = (temporary(), Counts())
      defer { try? FileManager.default.removeItem(at: folder) }
      for (system, expected) in [("24A1", 3), ("24A1", 3), ("24B7", 6)] {
        let models = CompiledModels(bundle: small.bundle, base: folder, system: system) {
          try counts.compile($0)
        }
        try await models.prepare()
        #expect(counts.compiled.withLock { $0 } == expected)
        let kept = try FileManager.default.contentsOfDirectory(atPath: folder.path)
        #expect(kept.count == 1 && kept[0].hasSuffix(system))
      }
    }

    @Test func aModelThatCannotBeCompiledIsRefusedAndLeavesNothing() async throws {
      let small = try SmallBundle()
      let folder = temporary()
      defer { try? FileManager.default.removeItem(at: folder) }
      let models = CompiledModels(bundle: small.bundle, base: folder, system: "x") { _ in
        throw CocoaError(.fileReadCorruptFile)
      }
      await #expect(throws: MatryoshkaError.self) { try await models.prepare() }
      let left = try FileManager.default.subpathsOfDirectory(atPath: folder.path)
      #expect(!left.contains { $0.hasSuffix(".mlmodelc") })
    }

    @Test func paddedRowsAreReadByTheirStrides() throws {
      let array = MLMultiArray(shape: [1, 2, 3], dataType: .float32, padding: 5)
      #expect(array.strides == [16, 8, 1])
      array.withUnsafeMutableBytes { bytes, strides in
        for row in 0..<2 {
          for column in 0..<3 {
            let place = 4 * (row * strides[1] + column)
            bytes.storeBytes(of: Float(10 * row + column), toByteOffset: place, as: Float.self)
          }
        }
      }
      #expect(try MultiArrays.tensor(array).values == [0, 1, 2, 10, 11, 12])
    }
  }
#endif
